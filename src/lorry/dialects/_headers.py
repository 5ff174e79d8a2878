"""The text that goes with an adapter from one dialect to another: kept, translated, or dropped when out of date."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lorry.adapters import Adapter
from lorry.algebra import Delta, DoraDelta, GloraDelta, LoraDelta, PartsDelta
from lorry.dialects._apart import take_apart
from lorry.dialects._metadata import METADATA_KEY

KEPT_CONFIG = "lorry.peft_config"
"""Where files of other dialects keep the config that an adapter came with from PEFT or diffusers. It stands under
another name than diffusers' own, which would take it for a description of this file's tensors."""

_OUT_OF_DATE = re.compile(
    r"sshs_(model|legacy)_hash|modelspec\.hash_sha256"  # of the bytes of another file
    r"|(unet|text_encoder)(:\d+:rank)?|format"  # cloneofsimo's, of positions; and the container's
)
_ALGORITHMS = {
    "LoRA": "locon",
    "LoHa": "loha",
    "LoKr": "lokr",
    "OFT": "diag-oft",
    "BOFT": "boft",
    "(IA)^3": "ia3",
    "GLoRA": "glora",
    "full": "full",
}
"""Source: KohakuBlueleaf/LyCORIS, `lycoris/config.py`."""


def kept_text(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that is true of an adapter in whatever dialect it is."""
    return {key: value for key, value in metadata.items() if not _OUT_OF_DATE.fullmatch(key)}


def kept_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the configs that an adapter came with, by component; under "" one that names none."""
    text = metadata.get(METADATA_KEY) or metadata.get(KEPT_CONFIG) or "{}"
    configs: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(text).items():
        component, _, option = name.rpartition(".")
        configs.setdefault(component, {})[option] = value
    return configs


def plain_header(adapter: Adapter) -> dict[str, str]:
    """Return the header of a file whose tensors say all: what is kept, and PEFT's config beside."""
    header = _with_true_kind(kept_text(adapter.metadata), adapter)
    config = header.pop(METADATA_KEY, None) or header.pop(KEPT_CONFIG, None)
    header = header if config is None else {**header, KEPT_CONFIG: config}
    if any(isinstance(_plain(entry.delta), GloraDelta) for entry in adapter.entries):
        header = _without_args(header, "rs_lora")  # it is written into their alphas
    return header if _has_alphas(adapter) else _without_alphas(header)


def header_without_alphas(adapter: Adapter) -> dict[str, str]:
    """Return the header of a file in which every layer has scale 1 without saying so."""
    return _without_alphas(plain_header(adapter))


def config_header(adapter: Adapter, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the header of a file that has its configs there, by component, as diffusers has."""
    header = {"format": "pt", **_with_true_kind(kept_text(adapter.metadata), adapter)}
    header.pop(KEPT_CONFIG, None)
    header.pop(METADATA_KEY, None)
    named = {
        f"{component}.{key}": value for component, config in configs.items() for key, value in config.items()
    }
    return {**header, METADATA_KEY: json.dumps(named, indent=2, sort_keys=True)} if named else header


def kohya_header(adapter: Adapter, module: str | None = None) -> dict[str, str]:
    """Return the header that kohya's trainers and LyCORIS write: the network's kind, rank and alpha.

    What the file says already stays, but for a rank and an alpha that its layers do not have.

    Args:
        adapter: what is written.
        module: the trainer's module for the network, where the file as it was does not say.
    """
    header = plain_header(adapter)
    algorithm = _algorithm(adapter)
    header.setdefault(
        "ss_network_module", module or ("networks.lora" if algorithm is None else "lycoris.kohya")
    )
    if algorithm is not None:
        header.setdefault("ss_network_args", json.dumps({"algo": algorithm}))
    ranks = [entry.delta.rank for entry in adapter.entries if entry.delta.rank is not None]
    alphas = [
        entry.delta.rank_scale * entry.delta.rank for entry in adapter.entries if entry.delta.rank is not None
    ]
    for key, numbers in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
        if numbers and not _is_one_of(header.get(key), numbers):
            header[key] = f"{numbers[0]:.9g}" if len(set(numbers)) == 1 else "Dynamic"
    return header if _has_alphas(adapter) else _without_alphas(header)


def _with_true_kind(header: dict[str, str], adapter: Adapter) -> dict[str, str]:
    """A header that does not tell a kind which no layer is of: approximating makes LoRAs of others."""
    args = _args(header)
    said = str(args.get("algo")).lower()
    families = {plain.family for entry in adapter.entries if (plain := _plain(entry.delta)) is not None}
    if not families or said not in {name for family, name in _ALGORITHMS.items() if family not in families}:
        return header
    return {**header, "ss_network_args": json.dumps({**args, "algo": _algorithm(adapter) or "locon"})}


def _without_alphas(header: dict[str, str]) -> dict[str, str]:
    """A header that names no alpha: what it says counts where no layer has an alpha of its own."""
    header = {key: value for key, value in header.items() if key != "ss_network_alpha"}
    return _without_args(header, "conv_alpha")


def _without_args(header: dict[str, str], *names: str) -> dict[str, str]:
    args = _args(header)
    if not args.keys() & set(names):
        return header
    kept = {name: value for name, value in args.items() if name not in names}
    return {**header, "ss_network_args": json.dumps(kept)}


def _args(header: Mapping[str, str]) -> dict[str, Any]:
    try:
        args = json.loads(header.get("ss_network_args") or "{}")
    except ValueError:
        return {}
    return args if isinstance(args, dict) else {}


def _is_one_of(text: str | None, numbers: Iterable[float]) -> bool:
    """Whether a header's number is that of some layer. It also says `Dynamic`, which is never wrong."""
    try:
        return text is not None and (text == "Dynamic" or float(text) in numbers)
    except ValueError:
        return False


def _has_alphas(adapter: Adapter) -> bool:
    return any("alpha" in take_apart(entry.delta) for entry in adapter.entries)


def _plain(delta: Delta | None) -> Delta | None:
    """A delta without its bias and its magnitude."""
    if isinstance(delta, PartsDelta):
        return _plain(delta.on_weight)
    return _plain(delta.inner) if isinstance(delta, DoraDelta) else delta


def _algorithm(adapter: Adapter) -> str | None:
    """LyCORIS's name for what an adapter is mostly of; None for LoRAs alone, which kohya's own trainers have."""
    deltas = [entry.delta for entry in adapter.entries]
    if all(isinstance(delta, LoraDelta) and delta.mid is None for delta in deltas):
        return None
    families = Counter(plain.family for delta in deltas if (plain := _plain(delta)) is not None)
    return _ALGORITHMS.get(families.most_common(1)[0][0], "full") if families else "full"

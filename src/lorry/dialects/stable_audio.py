"""The adapters of Stable Audio 3's own trainer, which are parametrizations of torch.

    model.transformer.layers.0.self_attn.to_qkv.parametrizations.weight.0.lora_A
    model.transformer.layers.0.self_attn.to_qkv.parametrizations.weight.0.magnitude
    conditioners.seconds_total.embedder.embedding.1.parametrizations.weight.0.M_xs

Pattern: the original's path, after `model.` that of the transformer, after `conditioners.` that of what embeds the
duration, `parametrizations.weight.0`, and a part: `lora_A` and `lora_B` of a LoRA or `M_xs` of a LoRA-XS, and besides
`magnitude` of a DoRA or `magnitude_r` and `magnitude_c` of a BoRA. Magnitudes are vectors. The text `lora_config` says
of all layers `rank` and `alpha`, whose quotient is the strength, and `adapter_type`: of a DoRA, whether its magnitudes
are of columns (`dora-cols`, `dora-cols-xs`) or of rows. In checkpoints of the trainer it stands beside the weights.
Written are files of layers that have one rank, one alpha and one kind together, as the text has them.

Source: Stability-AI/stable-audio-3 at 636f906f, `stable_audio_3/models/lora/{model,utils,loader}.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, final

from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.algebra import BoraDelta, Delta, DoraDelta, LoraDelta, LoraXsDelta
from lorry.dialects._alphas import check_alpha
from lorry.dialects._containers import dotted_target
from lorry.dialects._exporting import check_writable
from lorry.dialects._headers import plain_header
from lorry.dialects._naming import dotted
from lorry.dialects.base import BlockNames, Dialect
from lorry.errors import FormatError
from lorry.files import TensorFile
from lorry.names import DURATION_EMBEDDER, Target

CONFIG = "lora_config"
_KEY = re.compile(
    r"(?P<layer>.+)\.parametrizations\.weight\.(?P<number>\d+)\.(?P<part>lora_[AB]|M_xs|magnitude(?:_[rc])?)"
)
_DURATION = "conditioners.seconds_total.embedder.embedding.1"
_TEXT_ENCODER = "conditioners.prompt.model."
_INNER = re.compile(r"layers\.\d+\..+|project_(in|out)|global_cond_embedder\.\d+")
_OUTER = re.compile(r"(pre|post)process_conv|to_(timestep|cond|global)_embed\.\d+")
"""The layers of the transformer: those of the one inside the original's, and those around that."""
_WHOLE = tuple(
    {*factors, *magnitudes}
    for factors in (("lora_A", "lora_B"), ("M_xs",))
    for magnitudes in ((), ("magnitude",), ("magnitude_r", "magnitude_c"))
)
"""The parts of a layer of each kind."""


@final
class StableAudio(Dialect):
    """The adapters of Stable Audio 3's own trainer."""

    name: ClassVar[str] = "stable-audio"
    before: ClassVar[tuple[str, ...]] = ("diffusers",)
    block_names: ClassVar[BlockNames] = "original"
    only_for: ClassVar[tuple[str, ...]] = ("StableAudio3DiTModel",)

    def claims(self, file: TensorFile) -> bool:
        return any(".parametrizations.weight." in key and _KEY.fullmatch(key) for key in file.tensors)

    def read(self, file: TensorFile) -> Adapter:
        layers, unknown = dict[str, dict[str, str]](), list[str]()
        numbers: dict[str, str] = {}
        for key in sorted(file.tensors):
            if (found := _KEY.fullmatch(key)) is None:
                unknown.append(key)
                continue
            numbers.setdefault(found["number"], key)
            layers.setdefault(found["layer"], {})[found["part"]] = key
        if len(numbers) > 1:
            raise FormatError(
                f"{file.source} holds {len(numbers)} adapters at once: {', '.join(numbers.values())}. "
                "Save each to a file of its own."
            )
        config = _config(file)
        entries: list[Entry] = []
        for layer, keys in layers.items():
            if keys.keys() not in _WHOLE:
                unknown.extend(keys.values())
                continue
            target, own = _target(layer), tuple(sorted(keys.values()))
            try:
                delta = _delta({part: file.tensors[key] for part, key in keys.items()}, config)
            except FormatError as error:
                raise FormatError(f"{file.source}: {target} (`{own[0]}`): {error}") from error
            entries.append(Entry(target, delta, own, "metadata" if "alpha" in config else "rank"))
        return Adapter(
            tuple(sorted(entries, key=lambda entry: entry.target)),
            self.name,
            unknown=tuple(sorted(unknown)),
            metadata=file.metadata,
            source=file.source,
        )

    def obstacles(self, adapter: Adapter) -> Mapping[str, str]:
        found = {str(entry.target): _obstacle(entry) for entry in adapter.entries}
        said = next((_said(e.delta) for e in adapter.entries if not found[str(e.target)]), {})
        for entry in adapter.entries:
            if not found[str(entry.target)]:
                found[str(entry.target)] = _other_than(said, _said(entry.delta))
        return {target: what for target, what in found.items() if what}

    def write(self, adapter: Adapter) -> TensorFile:
        """Return a file of this dialect; one that the trainer wrote comes back with its text as it was.

        Raises:
            UnsupportedAdapterError: a layer is of another kind, or has another rank, strength or name, than one text
                can say.
        """
        check_writable(adapter, self.obstacles(adapter), self.name)
        tensors = {
            f"{_layer(entry.target)}.parametrizations.weight.0.{part}": tensor
            for entry in adapter.entries
            for part, tensor in _parts(entry.delta).items()
        }
        header = plain_header(adapter)
        before = _config(TensorFile({}, header, adapter.source))
        text = {**before, **_changed(before, _said(adapter.entries[0].delta))} if adapter.entries else before
        if text != before or CONFIG not in header:
            header[CONFIG] = json.dumps(text)
        return TensorFile(tensors, header, adapter.source)


def _obstacle(entry: Entry) -> str | None:
    """Return what of a layer has no place in such a file, whatever the others are."""
    inner = entry.delta.inner if isinstance(entry.delta, DoraDelta | BoraDelta) else entry.delta
    if not isinstance(inner, LoraDelta | LoraXsDelta):
        return inner.family
    if isinstance(inner, LoraDelta):
        if any(size != 1 for size in inner.shape[2:]):
            return f"{inner.family}: a kernel, where matrices stand alone"
        if inner.rank_stabilised:
            return f"{inner.family}: an alpha over the root of the rank"
    return None if _layer(entry.target) else "no name for this layer"


def _said(delta: Delta) -> dict[str, Any]:
    """Return what the text has to say of a layer."""
    inner = delta.inner if isinstance(delta, DoraDelta | BoraDelta) else delta
    kind = "lora"
    if isinstance(delta, DoraDelta):
        kind = "dora-cols" if delta.on_input else "dora-rows"
    elif isinstance(delta, BoraDelta):
        kind = "bora"
    alpha = getattr(inner, "alpha", None)
    return {
        "rank": inner.rank,
        "alpha": inner.rank if alpha is None else alpha,
        "adapter_type": f"{kind}-xs" if isinstance(inner, LoraXsDelta) else kind,
    }


def _other_than(said: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return what a layer has that the others have otherwise."""
    differing = [name for name, value in here.items() if said[name] != value]
    if not differing:
        return None
    name = differing[0]
    return f"its {name} is {here[name]}, and one text says {said[name]} of all layers"


def _changed(before: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a text is not true of the layers; `dora` is an older word of the trainer's for its rows."""
    older = {"dora": "dora-rows"}
    return {
        name: value
        for name, value in said.items()
        if before.get(name) != value and older.get(str(before.get(name))) != value
    }


def _parts(delta: Delta) -> dict[str, Tensor]:
    """Return the tensors of a layer without obstacles, by part."""
    if isinstance(delta, DoraDelta):
        return _parts(delta.inner) | {"magnitude": delta.magnitude.flatten()}
    if isinstance(delta, BoraDelta):
        magnitudes = {"magnitude_r": delta.row_magnitude, "magnitude_c": delta.column_magnitude}
        return _parts(delta.inner) | magnitudes
    if isinstance(delta, LoraXsDelta):
        return {"M_xs": delta.core}
    tensors = delta.tensors()
    return {"lora_A": tensors["down"].flatten(1), "lora_B": tensors["up"].flatten(1)}


def _layer(target: Target) -> str | None:
    """Return the trainer's name of a layer; None where it has none."""
    target = dotted(target)
    if target.component == DURATION_EMBEDDER:
        return _DURATION if target.path == "linear" else None
    if target.component == "text_encoder":
        return f"{_TEXT_ENCODER}{target.path}"
    if target.component != "transformer":
        return None
    if _INNER.fullmatch(inner := target.path.removeprefix("transformer.")):
        return f"model.transformer.{inner}"
    return f"model.{target.path}" if _OUTER.fullmatch(target.path) else None


def _target(layer: str) -> Target:
    if layer == _DURATION:
        return Target(DURATION_EMBEDDER, "linear")
    if layer.startswith(_TEXT_ENCODER):
        return Target("text_encoder", layer.removeprefix(_TEXT_ENCODER))
    return dotted_target(layer)


def _config(file: TensorFile) -> Mapping[str, Any]:
    """Return what the trainer says of all layers; nothing where the file has no such text.

    Raises:
        FormatError: it cannot be read.
    """
    text = file.metadata.get(CONFIG)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file.source}: the metadata `{CONFIG}` is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise FormatError(f"{file.source}: the metadata `{CONFIG}` is no JSON object.")
    return found


def _delta(parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> Delta:
    """Return the delta of one layer.

    Raises:
        FormatError: its parts do not fit each other, or what the text says of them.
    """
    for part, tensor in parts.items():
        if not tensor.is_floating_point():
            raise FormatError(f"expected floating-point numbers in `{part}`, got {tensor.dtype}.")
    core = parts.get("M_xs")
    rank = (parts["lora_A"] if core is None else core).shape[0]
    if config.get("rank", rank) != rank:
        raise FormatError(
            f"`{CONFIG}` says rank {config['rank']!r}, and this layer's is {rank}. The strength is alpha / rank, and "
            "which of the two is meant only the file's author can say: put the true rank there."
        )
    alpha = check_alpha(config["alpha"], f"`alpha` of `{CONFIG}`") if "alpha" in config else None
    inner = (
        LoraXsDelta(core, alpha)
        if core is not None
        else LoraDelta(parts["lora_A"], parts["lora_B"], alpha=alpha)
    )
    if "magnitude" in parts:
        return DoraDelta(inner, parts["magnitude"], _is_of_columns(parts["magnitude"], inner, config))
    if "magnitude_r" in parts:
        return BoraDelta(inner, parts["magnitude_r"], parts["magnitude_c"])
    return inner


def _is_of_columns(magnitude: Tensor, inner: Delta, config: Mapping[str, Any]) -> bool:
    """Whether a DoRA's magnitude is of columns: by what the text says, else by its shape and the layer's.

    Raises:
        FormatError: neither tells.
    """
    kind = config.get("adapter_type")
    if isinstance(kind, str) and kind.startswith(("dora-rows", "dora-cols")):
        return kind.startswith("dora-cols")
    if magnitude.ndim == 2 and 1 in magnitude.shape:  # of an older trainer
        return magnitude.shape[0] == 1
    rows, columns = inner.shape[:2]
    if kind == "dora" or magnitude.numel() == rows != columns:
        return False
    if magnitude.numel() == columns != rows:
        return True
    raise FormatError(
        f"nothing says whether the magnitude is of rows or of columns of this {inner.family} of {inner.shape}: "
        f"expected `adapter_type` in the metadata `{CONFIG}`, as the trainer writes it."
    )

"""Which targets of several adapters are the same module, whatever dialects they came in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from lorry.adapters import Adapter, Entry
from lorry.algebra import UNKNOWN, Delta, LohaDelta, LokrDelta
from lorry.binding.kinds import kind_of
from lorry.names import DENOISER, Target
from lorry.workflows.original_layers import with_common_layers
from lorry.workflows.sgm import UnetLayout, diffusers_path, is_sgm, layout_of

_ROOTS = ("text_model_", "model_")
_ONE_BY_ONE = re.compile(r"(conv_shortcut|skip_connection)$")


@final
@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """One module, and what each of several adapters has for it."""

    target: Target
    """As the first adapter that has it names it."""
    name: str
    """One name for all spellings: component, diffusers' path, with `_` for `.`."""
    entries: tuple[Entry | None, ...]

    @property
    def present(self) -> tuple[Entry, ...]:
        """The entries that are there."""
        return tuple(entry for entry in self.entries if entry is not None)


def match(adapters: Sequence[Adapter]) -> list[Layer]:
    """Return every module that any of the adapters changes, in the order in which they name them.

    Where some have the names of a transformer's original checkpoint and others those of diffusers, fused layers are
    taken apart. A LoHa or LoKr of a convolution gets the kernel that its name tells: see `with_kernel`. What does not
    tell its columns (VeRA) gets those of another adapter's for the same module.
    """
    found: dict[str, dict[int, Entry]] = {}
    for number, adapter in enumerate(with_common_layers(adapters)):
        layout = layout_of(entry.target.path for entry in adapter.entries)
        for entry in adapter.entries:
            name = common_name(entry.target, layout)
            found.setdefault(name, {})[number] = replace(entry, delta=with_kernel(entry))
    return [
        Layer(min(entries.items())[1].target, name, tuple(entries.get(n) for n in range(len(adapters))))
        for name, entries in ((name, _with_columns(entries)) for name, entries in found.items())
    ]


def _with_columns(entries: Mapping[int, Entry]) -> Mapping[int, Entry]:
    known = [entry.delta.shape for entry in entries.values() if UNKNOWN not in entry.delta.shape]

    def told(entry: Entry) -> Entry:
        is_whole = entry.delta.needs_base or UNKNOWN not in entry.delta.shape
        return entry if is_whole else replace(entry, delta=entry.delta.fitted(known[0]) or entry.delta)

    return {number: told(entry) for number, entry in entries.items()} if known else entries


def common_name(target: Target, layout: UnetLayout | None = None) -> str:
    """Return one name for all spellings of a target: `denoiser.down_blocks_0_…`, `text_encoder.encoder_layers_0_…`."""
    path = target.path
    component = DENOISER if target.component in ("unet", "transformer") else target.component
    if component == DENOISER and is_sgm(path):
        path = diffusers_path(path, layout or layout_of([path]))
    path = path.replace(".", "_")
    if component != DENOISER:
        for root in _ROOTS:
            path = path.removeprefix(root)
    return f"{component}.{path}"


def with_kernel(entry: Entry) -> Delta:
    """Return an entry's delta; a LoHa or LoKr of a convolution with the kernel's axes, which its tensors do not tell.

    In the models that such files are for, every convolution is 3x3 but the shortcuts and the projections of attention
    blocks, which are 1x1.
    """
    delta = entry.delta
    path = entry.target.path.replace(".", "_")
    is_flat = isinstance(delta, LohaDelta | LokrDelta) and len(delta.shape) == 2
    if not is_flat or kind_of(entry.target) != "convolution" or _ONE_BY_ONE.search(path):
        return delta
    out, columns = delta.shape
    fitted = delta.fitted((out, columns // 9, 3, 3)) if columns % 9 == 0 else None
    return delta if fitted is None else fitted


def components_of(layers: Iterable[Layer]) -> list[str]:
    """Return the components of layers, in order."""
    return list(dict.fromkeys(layer.target.component for layer in layers))

"""The difference of two checkpoints as an adapter: fine-tuned minus base, one tensor at a time."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.adapters.adding import delta_of
from lorry.adapters.approximating import nearest_kronecker, svd_to_energy
from lorry.adapters.matrices import decompose, square_of
from lorry.algebra import Delta, FullDelta, PartsDelta
from lorry.binding import size_of
from lorry.errors import NotFiniteError, ShapeMismatchError, StateError
from lorry.names import Target
from lorry.workflows.accuracy import Errors, ErrorSum
from lorry.workflows.checkpoints import Checkpoint, open_checkpoint
from lorry.workflows.combine import ranks_of
from lorry.workflows.matching import Layer, common_name
from lorry.workflows.memory import trim_heap
from lorry.workflows.progress import Progress, silent
from lorry.workflows.rules import Rule, check_ranks, check_rules, number_for
from lorry.workflows.storing import DTYPES, FALLBACK, check_destination, get_dtype, write_adapter

EMBEDDING = re.compile(r"(token|position)_embedding|\bshared\b|embed_tokens|relative_attention_bias")
"""Tables that are looked up, which no adapter's layer stands for."""


@final
@dataclass(frozen=True, slots=True)
class Form:
    """What each changed weight is turned into."""

    rank: int | None = 16
    """Of every layer; with `kronecker` that of the second factor, where None leaves it whole."""
    energy: float | None = None
    """The share of the squared change that every layer keeps, in the place of a rank."""
    kronecker: int | None = None
    """Make LoKr of this factor in the place of LoRA."""
    rules: tuple[Rule, ...] = ()
    """Ranks for the layers that a pattern names."""
    diffs: bool = False
    """Take what has no rank (norms, biases) along as full differences."""
    least: float = 0.0
    """Layers whose change is no more than this share of the weight's norm are left out."""
    seed: int = 0
    """Of the sketches."""

    def __post_init__(self) -> None:
        if self.energy is not None and (self.rank is not None or self.kronecker is not None):
            raise StateError("An energy beside a rank or a Kronecker factor: give one of them.")
        if self.energy is None and self.rank is None and self.kronecker is None:
            raise StateError("Expected a rank, an energy or a Kronecker factor, got none of them.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise StateError(f"An energy of {self.energy:g}: expected a share over 0 and up to 1.")
        for name, value in (("rank", self.rank), ("Kronecker factor", self.kronecker)):
            if value is not None and value < 1:
                raise StateError(f"A {name} of {value}: expected 1 or more.")
        check_ranks(self.rules)


@final
@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What was extracted, and how far it is from the change."""

    base: str
    tuned: str
    targets: Mapping[str, int]
    """{component: how many layers}."""
    ranks: Mapping[int, int]
    errors: Errors
    """Of the layers' weights, against the whole change of these."""
    unchanged: int
    """How many parameters are alike in both."""
    left_out: Mapping[str, int]
    """{what and why: how many changed parameters are not in the adapter}."""
    left_out_share: float
    """Their share of the squared norm of the whole change."""
    path: str | None
    size: int | None

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        layers = ", ".join(f"{component}: {count} layers" for component, count in self.targets.items())
        ranks = ", ".join(f"{rank} ({count})" for rank, count in self.ranks.items())
        lines = [
            f"{self.tuned} - {self.base}",
            f"  {layers}; rank {ranks}",
            f"  against the change: {self.errors}",
        ]
        lines.append(f"  {self.unchanged} parameters are alike in both")
        if self.left_out:
            listed = ", ".join(f"{count} {what}" for what, count in self.left_out.items())
            lines.append(f"  left out: {listed}; {self.left_out_share:.2%} of the squared change")
        return "\n".join(
            [*lines, f"  {self.path}, {size_of(self.size or 0)}" if self.path else "  nothing written"]
        )


@dataclass
class _Found:
    """What is known after the layers so far."""

    entries: list[Entry] = field(default_factory=list)
    errors: ErrorSum = field(default_factory=ErrorSum)
    unchanged: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lost: float = 0.0
    whole: float = 0.0


def extract_files(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    form: Form | None = None,
    *,
    components: Sequence[str] = (),
    dtype: str | torch.dtype = "float16",
    dialect: str | None = None,
    progress: Progress = silent,
) -> ExtractReport:
    """Write the difference of two checkpoints as an adapter: LoRA for linear layers, LoCon for convolutions, or LoKr.

    The two may be folders or single files, one of each, in any of float32, float16 and bfloat16. One layer at a time is
    in memory. Added to the base, the adapter gives the fine-tuned weights up to the error that is reported.

    Args:
        base: the checkpoint that was fine-tuned.
        tuned: what came of it.
        out: where to write; None works the report out and writes nothing.
        form: ranks and families.
        components: which of them; all that both checkpoints have when none is given.
        dtype: to write in.
        dialect: to write in; kohya's when None.
        progress: told of each layer.

    Raises:
        ShapeMismatchError: the two are of different architectures.
        StateError: they have no component in common, do not differ, or a dialect is said where nothing is written.
        NotFiniteError: a checkpoint, or the result, holds a NaN or an infinity; nothing is written.
        FileError: `out` cannot be written, or is there already and is no adapter.
    """
    check_destination(out, dialect)
    form, chosen = form or Form(), get_dtype(dtype) or DTYPES["float16"]
    with open_checkpoint(base) as first, open_checkpoint(tuned) as second:
        layers = _layers(first, second, _common(first, second, components))
        check_rules(form.rules, [_as_layer(target) for target in layers])
        found = _Found()
        for target in progress(list(layers), "extracting"):
            _extract(first, second, target, layers[target], form, chosen, found)
            trim_heap()
    if not found.entries:
        raise StateError(
            f"{first.source} and {second.source} do not differ in any layer that an adapter can change."
        )
    made = {"from": second.source.name, "base": first.source.name, "rank": form.rank, "energy": form.energy}
    text = {"lorry.extracted": json.dumps({key: value for key, value in made.items() if value})}
    adapter = Adapter(
        tuple(found.entries), dialect or FALLBACK, metadata=text, source=f"{second.source} - {first.source}"
    )
    path = None if out is None else write_adapter(adapter, out, dialect)
    return ExtractReport(
        base=str(first.source),
        tuned=str(second.source),
        targets=dict(Counter(entry.target.component for entry in found.entries)),
        ranks=ranks_of(entry for entry in found.entries if entry.delta.part("weight") is not None),
        errors=found.errors.total(),
        unchanged=found.unchanged,
        left_out=dict(found.left_out),
        left_out_share=found.lost / found.whole if found.whole else 0.0,
        path=None if path is None else str(path),
        size=None if path is None else path.stat().st_size,
    )


def _common(first: Checkpoint, second: Checkpoint, wanted: Sequence[str]) -> list[str]:
    both = [name for name in first.components if name in second.components]
    missing = [name for name in wanted if name not in both]
    if missing or not both:
        raise StateError(
            f"{first.source} has {', '.join(first.components)}, {second.source} has {', '.join(second.components)}: "
            f"{', '.join(missing) or 'no component'} is not in both."
        )
    return list(dict.fromkeys(wanted)) or both


def _layers(first: Checkpoint, second: Checkpoint, components: Sequence[str]) -> dict[Target, list[str]]:
    """Return the parameters of each module: what both have, in shapes that are alike.

    Raises:
        ShapeMismatchError: a parameter differs in shape, or too few are in both.
    """
    layers: dict[Target, list[str]] = {}
    for component in components:
        mine, theirs = first.components[component], second.components[component]
        names = [name for name in mine if name in theirs]
        if len(names) < len(mine) / 2:
            raise ShapeMismatchError(
                f"{component}: {len(names)} of {len(mine)} parameters of {first.source} are in {second.source}: they "
                "are of different architectures."
            )
        for name in names:
            one, two = first.outline(mine[name]), second.outline(theirs[name])
            if one.shape != two.shape:
                raise ShapeMismatchError(
                    f"`{component}.{name}`: {tuple(one.shape)} in {first.source}, {tuple(two.shape)} in "
                    f"{second.source}: they are of different architectures."
                )
            module, _, parameter = name.rpartition(".")
            layers.setdefault(Target(component, module), []).append(parameter)
    return layers


def _extract(
    first: Checkpoint,
    second: Checkpoint,
    target: Target,
    parameters: Sequence[str],
    form: Form,
    dtype: torch.dtype,
    found: _Found,
) -> None:
    """Put what one module's parameters changed by into `found`."""
    weight: Delta | None = None
    bias: Delta | None = None
    for parameter, change, share in _changes(first, second, target, parameters):
        square = square_of(change)
        found.whole += square
        reason = _reason_to_leave_out(target, parameter, change, share, form)
        if square == 0:
            found.unchanged += 1
        elif reason:
            found.left_out[reason] += 1
            found.lost += square
        elif parameter == "bias":
            bias = FullDelta(change.to(dtype))
        else:
            weight = (
                _approximated(change, target, form, dtype) if change.ndim > 1 else FullDelta(change.to(dtype))
            )
            left = weight.weight(dtype=torch.float32).reshape(change.shape).sub_(change)
            found.errors.put(str(target), square_of(left), square)
    if bias is not None:
        found.entries.append(Entry(target, PartsDelta(weight, bias), ()))
    elif weight is not None:
        found.entries.append(Entry(target, weight, ()))


def _changes(
    first: Checkpoint, second: Checkpoint, target: Target, parameters: Sequence[str]
) -> Iterator[tuple[str, Tensor, float]]:
    """Yield each parameter's change in float32, and its share of the parameter's norm."""
    for parameter in parameters:
        name = f"{target.path}.{parameter}" if target.path else parameter
        one = first.read(first.components[target.component][name])
        if not one.is_floating_point():
            continue
        change = second.read(second.components[target.component][name]).float().sub_(one)
        norm = square_of(one)
        if not isfinite(square_of(change)):
            where = first.source if not isfinite(norm) else second.source
            raise NotFiniteError(
                f"`{target.component}.{name}` in {where} holds a NaN or an infinity, expected finite numbers: nothing "
                "was written. The checkpoint is damaged, or its training went wrong. Take an earlier save of it."
            )
        del one  # what is yielded is worked on for a while, and no second copy shall stand by
        yield parameter, change, (square_of(change) / norm) ** 0.5 if norm else float("inf")


def _reason_to_leave_out(
    target: Target, parameter: str, change: Tensor, share: float, form: Form
) -> str | None:
    if parameter not in ("weight", "bias"):
        return "parameters of no layer"
    if EMBEDDING.search(target.path):
        return "embeddings"
    if change.ndim < 2 and not form.diffs:
        return (
            "biases (`diffs` takes them along)" if parameter == "bias" else "norms (`diffs` takes them along)"
        )
    return "changes under the least" if share <= form.least else None


def _approximated(change: Tensor, target: Target, form: Form, dtype: torch.dtype) -> Delta:
    ruled = number_for(_as_layer(target), form.rules)
    rank = form.rank if ruled is None else int(ruled)
    if form.kronecker is not None:
        delta = nearest_kronecker(change, form.kronecker, rank, form.seed)
        return delta.with_tensors({name: tensor.to(dtype) for name, tensor in delta.tensors().items()})
    if rank is None and form.energy is not None:
        svd = svd_to_energy(change, form.energy, form.seed)
    else:
        svd = decompose(change, rank, form.seed)
    return delta_of(svd.pair(change.shape[1:]), dtype)


def _as_layer(target: Target) -> Layer:
    return Layer(target, common_name(target), ())

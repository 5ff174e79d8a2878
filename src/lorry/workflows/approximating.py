"""Other forms of what a dialect has no names for: the same to rounding where there is one, else a LoRA by SVD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from torch import Tensor, nn

from lorry.adapters import Adapter, Entry
from lorry.adapters.matrices import needs_base
from lorry.adapters.reducing import reduced
from lorry.adapters.rows import Rows, join_rows
from lorry.algebra import (
    Delta,
    FullDelta,
    Ia3Delta,
    LokrDelta,
    LoraDelta,
    PartsDelta,
    StackedDelta,
)
from lorry.binding import carriers
from lorry.dialects import Dialect
from lorry.errors import UnsupportedAdapterError
from lorry.workflows.accuracy import ErrorSum

RANK = 32
"""The rank of LoRAs that are made, where none is asked for."""


@final
@dataclass(frozen=True, slots=True)
class Approximation:
    """A layer that was written as something else."""

    layer: str
    was: str
    became: str
    error: float
    """Of the layer's delta, relative in the Frobenius norm."""

    def __str__(self) -> str:
        return f"{self.layer}: {self.was} as {self.became}, error {self.error:.3g}"


@final
@dataclass
class Approximator:
    """Gives an adapter other forms, and keeps what that cost."""

    rank: int = RANK
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    """Whose weights families need that depend on them; modules on the meta device have none."""
    made: list[Approximation] = field(default_factory=list)
    errors: ErrorSum = field(default_factory=ErrorSum)

    def join(self, name: str, deltas: Sequence[Delta | None], rows: Rows) -> Delta:
        """Make one delta of several layers': exactly, or of LoRAs that each became."""
        joined = join_rows(deltas, rows)
        if joined is not None:
            return joined
        known = [delta for delta in deltas if delta is not None]
        loras = [None if d is None else _at_scale_1(reduced(d, d.rank or self.rank)) for d in deltas]
        joined = join_rows(loras, rows)
        if joined is None:
            raise UnsupportedAdapterError(
                f"`{name}`: {', '.join(d.family for d in known)} of {len(rows)} layers cannot become one."
            )
        starts = [sum(rows[:i]) for i in range(len(rows))]
        parts = [(d, (s, s + n)) for d, s, n in zip(deltas, starts, rows, strict=True) if d is not None]
        stacked, spans = zip(*parts, strict=True)
        exact = StackedDelta(tuple(stacked), tuple(spans), (sum(rows), *known[0].shape[1:]))
        self._note(name, exact, joined, "one layer's LoRA")
        return joined

    def fit(self, adapter: Adapter, dialect: Dialect) -> Adapter:
        """Return an adapter that a dialect has names for, as far as there is such a one.

        Raises:
            UnsupportedAdapterError: a layer depends on base weights that are not at hand.
        """
        for step in (self._rounded, self._at_scale_1, self._lora):
            obstacles = dialect.obstacles(adapter)
            entries = [step(entry) if str(entry.target) in obstacles else entry for entry in adapter.entries]
            adapter = replace(adapter, entries=tuple(entries))
        return adapter

    def _rounded(self, entry: Entry) -> Entry:
        other = _rounded(entry.delta)
        return entry if other is None else self._replaced(entry, other, "the same, rounded")

    def _at_scale_1(self, entry: Entry) -> Entry:
        if not isinstance(entry.delta, LoraDelta) or entry.delta.rank_scale == 1:
            return entry
        return self._replaced(entry, _at_scale_1(entry.delta), "LoRA at scale 1, rounded")

    def _lora(self, entry: Entry) -> Entry:
        exact = self._without_base(entry)
        if len(exact.shape) < 2:
            return entry
        lora = _at_scale_1(reduced(exact, self.rank))
        return self._replaced(entry, lora, f"LoRA of rank {lora.rank}", exact)

    def _without_base(self, entry: Entry) -> Delta:
        """An entry's delta as a full difference, where it depends on the base weight."""
        delta = entry.delta.part("weight")
        if delta is None or not needs_base(delta):
            return entry.delta
        base = self._weight(entry)
        if base is None:
            raise UnsupportedAdapterError(
                f"{entry.target}: what {delta.family} adds depends on the base weight, which is not at hand. Give the "
                "base model's folder, with its weights: `--base FOLDER`."
            )
        bias = entry.delta.part("bias")
        full = FullDelta(delta.weight(base))
        return full if bias is None else PartsDelta(full, bias)

    def _weight(self, entry: Entry) -> Tensor | None:
        model = self.models.get(entry.target.component)
        module = None if model is None else carriers(model).get(entry.target.path)
        weight = None if module is None else module._parameters.get("weight")
        return None if weight is None or weight.is_meta else weight.detach().float()

    def _replaced(self, entry: Entry, delta: Delta, became: str, exact: Delta | None = None) -> Entry:
        self._note(str(entry.target), exact or entry.delta, delta, became, entry.delta.family)
        return replace(entry, delta=delta)

    def _note(self, name: str, exact: Delta, got: Delta, became: str, was: str | None = None) -> None:
        layer = ErrorSum()
        layer.add(name, got, exact)
        self.errors.layers.update(layer.layers)
        self.made.append(Approximation(name, was or exact.family, became, layer.total().total))


def _rounded(delta: Delta) -> Delta | None:
    """The same delta in other tensors, off by their rounding; None where there is nothing of the kind."""
    if isinstance(delta, LoraDelta) and delta.mid is not None:
        pair = delta.low_rank()
        dtype = delta.down.dtype
        return replace(delta, down=pair.down.to(dtype), mid=None)
    if isinstance(delta, LokrDelta) and delta.rank_scale != 1 and delta.rank is None and delta.w1 is not None:
        w1 = (delta.w1.float() * delta.full_scale).to(delta.w1.dtype)
        return replace(delta, w1=w1, full_scale=1.0)
    if isinstance(delta, Ia3Delta) and delta.on_input:  # PEFT's of the rows scales the bias too
        other = 1.0 - delta.neutral
        return replace(
            delta, vector=(delta.vector.float() + other - delta.neutral).to(delta.vector.dtype), neutral=other
        )
    if isinstance(delta, PartsDelta) and isinstance(delta.on_bias, FullDelta):
        weight = delta.on_weight if delta.on_weight is None else _rounded(delta.on_weight) or delta.on_weight
        return PartsDelta(weight, _other_scale(delta.on_bias, delta.rank_scale))
    return None


def _other_scale(bias: FullDelta, scale: float) -> FullDelta:
    """A bias with the scale of its LoRA where it has none, and without where it has."""
    to = scale if bias.scale == 1 else 1.0
    return FullDelta((bias.diff.float() * (bias.scale / to)).to(bias.diff.dtype), to)


def _at_scale_1(delta: Delta) -> Delta:
    """A LoRA with its scale multiplied into `up`, and its bias's likewise; others as they are."""
    if isinstance(delta, PartsDelta) and delta.on_weight is not None:
        bias = delta.on_bias
        plain = _other_scale(bias, 1.0) if isinstance(bias, FullDelta) and bias.scale != 1 else bias
        return PartsDelta(_at_scale_1(delta.on_weight), plain)
    if not isinstance(delta, LoraDelta) or delta.rank_scale == 1:
        return delta
    up = (delta.up.float() * delta.rank_scale).to(delta.up.dtype)
    return replace(delta, up=up, alpha=None, rank_stabilised=False)

"""All or nothing: every change to a live model is written down, and taken back when a later one fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice, repeat
from operator import itemgetter, setitem
from types import TracebackType
from typing import Any, Self, final

from torch import Tensor

from lorry.patching.exchanging import exchange


@final
class Undo:
    """A context whose changes are taken back, last first, when an exception (of any kind) leaves it.

    Changes are made through its methods: pointers, dictionary entries, and the numbers of small tensors, so that
    taking back cannot fail.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._afterwards: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for step, arguments in reversed(self._steps):
                step(*arguments)
        self._steps.clear()
        afterwards, self._afterwards = self._afterwards, []
        if kind is None:
            for work in afterwards:
                work()

    def on_failure(self, step: Callable[[], object]) -> None:
        """Call `step` when the changes are taken back."""
        self._steps.append((step, ()))

    def on_success(self, work: Callable[[], object]) -> None:
        """Call `work` when the changes have been made, and what was there before is let go."""
        self._afterwards.append(work)

    def set_attribute(self, holder: object, name: str, value: object) -> None:
        """`setattr(holder, name, value)`, to be taken back to the value that is there now."""
        self._steps.append((setattr, (holder, name, getattr(holder, name))))
        setattr(holder, name, value)

    def set_classes(self, holders: Collection[object], new: Iterable[type]) -> None:
        """`holder.__class__ = new` for all of `holders`: one step for them all.

        It goes past the `__setattr__` of `nn.Module`, which looks for parameters first.
        """
        self._steps.append((_set_classes, (holders, [*map(type, holders)])))
        _set_classes(holders, new)

    def set_item(self, holder: dict[str, Any], key: str, value: object) -> None:
        """`holder[key] = value`, to be taken back to what is there now, or to nothing."""
        if key in holder:
            self._steps.append((holder.__setitem__, (key, holder[key])))
        else:
            self._steps.append((holder.pop, (key, None)))
        holder[key] = value

    def set_in_all(
        self,
        holders: Collection[dict[str, Any]],
        key: str,
        values: Iterable[object],
        now: Sequence[object] | None = None,
    ) -> None:
        """`holder[key] = value` for all of `holders`, which have that key already: one step for them all.

        Args:
            holders: dictionaries.
            key: of each.
            values: one for each.
            now: what they have there, where the caller knows.
        """
        before = [*map(itemgetter(key), holders)] if now is None else now
        self._steps.append((_set_in_all, (holders, key, before)))
        _set_in_all(holders, key, values)

    def add_to_sets(self, sets: Iterable[set[str]], names: Sequence[str]) -> None:
        """Add names to sets, of which each has all of them already, or none."""
        lacking = [one for one in sets if names[0] not in one]
        self._steps.append((_discard_from, (lacking, names)))
        _add_to(lacking, names)

    def discard_from_sets(self, sets: Iterable[set[str]], names: Sequence[str]) -> None:
        """Take names out of sets, of which each has all of them, or none."""
        having = [one for one in filter(None, sets) if names[0] in one]
        self._steps.append((_add_to, (having, names)))
        _discard_from(having, names)

    def set_data(self, parameters: Sequence[Tensor], values: Sequence[Tensor], now: Sequence[Tensor]) -> None:
        """`parameter.data = value` for all of `parameters`, which have `now` there: one step for them all."""
        self._steps.append((_set_data, (parameters, now)))
        _set_data(parameters, values)

    def exchange(self, ones: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Let the tensors of `ones` and of `others` change places, pair by pair: one step for them all."""
        done = list[None]()  # as many as have changed places, should one fail
        self._steps.append((_exchange_back, (done, ones, others)))
        done.extend(exchange(ones, others))

    def delete_item(self, holder: dict[Any, Any], key: Any) -> None:
        """`del holder[key]`, to be put back in its place: the order of a module's parameters is part of it."""
        if next(reversed(holder)) != key:
            keys = list(holder)
            rest = keys[keys.index(key) + 1 :]
            self._steps.extend((_move_to_end, (holder, later)) for later in reversed(rest))
        self._steps.append((holder.__setitem__, (key, holder[key])))
        del holder[key]

    def delete_in_all(self, holders: Iterable[dict[str, Any]], key: str) -> None:
        """`del holder[key]` in all of `holders` that have it, each put back in its place: one step for most of them."""
        having = [holder for holder in holders if key in holder]
        last = [holder for holder in having if next(reversed(holder)) == key]
        self._steps.append((_set_in_all, (last, key, [holder.pop(key) for holder in last])))
        for holder in having:
            if key in holder:
                self.delete_item(holder, key)


def _set_classes(holders: Iterable[object], classes: Iterable[type]) -> None:
    deque(map(object.__setattr__, holders, repeat("__class__"), classes), maxlen=0)


def _set_in_all(holders: Iterable[dict[str, Any]], key: str, values: Iterable[object]) -> None:
    deque(map(setitem, holders, repeat(key), values), maxlen=0)


def _add_to(sets: Iterable[set[str]], names: Sequence[str]) -> None:
    deque(map(set.update, sets, repeat(names)), maxlen=0)


def _discard_from(sets: Iterable[set[str]], names: Sequence[str]) -> None:
    deque(map(set.difference_update, sets, repeat(names)), maxlen=0)


def _set_data(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    deque(map(setattr, parameters, repeat("data"), values), maxlen=0)


def _exchange_back(done: Sequence[None], ones: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    deque(exchange(islice(ones, len(done)), others), maxlen=0)


def _move_to_end(holder: dict[Any, Any], key: Any) -> None:
    holder[key] = holder.pop(key)

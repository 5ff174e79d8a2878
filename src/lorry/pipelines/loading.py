"""Put an adapter on a pipeline's components: read, plan, apply, all or nothing."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import final

from torch import Tensor, nn

from lorry.adapters import Adapter, block_of
from lorry.algebra import Delta
from lorry.background import LARGE, begun
from lorry.binding import LoadReport, Plan, bind
from lorry.errors import DuplicateAdapterError, NotFiniteError, UnknownAdapterError, did_you_mean
from lorry.names import DENOISERS, check_adapter_name
from lorry.patching import (
    AdapterState,
    Strength,
    Undo,
    apart,
    can_be_kept,
    common_block,
    find_not_finite,
    find_state,
    get_state,
    is_finite,
    unknown_adapter,
)
from lorry.pipelines.components import told_of_peft
from lorry.pipelines.tokens import put_tokens, tokenizers_of

log = logging.getLogger("lorry")


@final
class _Pauses:
    """The contexts of all threads in which the collector is to be still: the last to leave turns it on again."""

    _lock, _open, _was_enabled = Lock(), 0, False

    @classmethod
    def begin(cls) -> None:
        with cls._lock:
            if not cls._open:
                cls._was_enabled = gc.isenabled()
            gc.disable()
            cls._open += 1

    @classmethod
    def end(cls) -> None:
        with cls._lock:
            cls._open -= 1
            if not cls._open and cls._was_enabled:
                gc.enable()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cyclic garbage collector still inside the context.

    Reading an adapter makes thousands of small objects and no garbage. The collector would look at them, and at
    everything else of torch and diffusers, dozens of times meanwhile, which is a third of the time of a load. It is the
    process's, and on again when no thread is in such a context any more.
    """
    _Pauses.begin()
    try:
        yield
    finally:
        _Pauses.end()


def load_adapter(
    adapter: Adapter,
    models: Mapping[str, nn.Module | None],
    name: str | None,
    *,
    strength: float = 1.0,
    strict: bool = True,
    hotswap: bool = False,
    denoisers: Sequence[str] | None = None,
    pipeline: object = None,
    owned: bool = False,
) -> LoadReport:
    """Load an adapter into `models`, and make it the one active adapter of them all.

    Args:
        adapter: what to load.
        models: the components by name.
        name: the adapter's name; `default_{i}` when None, i the number of adapters loaded.
        strength: its strength.
        strict: refuse a file of which any tensor has no place or a wrong shape.
        hotswap: put it in the place of the adapter of that name, with that one's strength and activity.
        denoisers: of a pipeline with two, those that get the file's part for the denoiser (as in `bind`).
        pipeline: whose tokenizers learn the tokens that the adapter brings; without one they are left out.
        owned: nobody else has the memory of the adapter's tensors, so that it need not be copied.

    Returns:
        The report, which is logged too.

    Raises:
        DuplicateAdapterError: the name is taken, and not `hotswap`.
        UnknownAdapterError: `hotswap`, and there is none of that name.
        BindingError: the adapter does not fit, or (strict) holds a NaN or an infinity; nothing was changed.
    """
    loaded = loaded_names(models)
    if hotswap and name is None:
        raise UnknownAdapterError(
            "`hotswap=True` puts a file in the place of an adapter that is loaded: say which by `adapter_name` "
            f"(loaded: {', '.join(map(repr, loaded)) or 'none'})."
        )
    name = check_adapter_name(_default_name(loaded) if name is None else name)
    if hotswap and name not in loaded:
        raise unknown_adapter(name, loaded)
    if not hotswap and name in loaded:
        raise DuplicateAdapterError(
            f"An adapter named {name!r} is loaded already. Choose another `adapter_name`, swap it in place with "
            f"`hotswap=True`, or take it off with `delete_adapters({name!r})`."
        )
    tokenizers = tokenizers_of(pipeline)
    alone = block_of(adapter)
    block = alone if alone is not None else common_block(_tensors(entry.delta for entry in adapter.entries))
    looked = None if block is None or block.nbytes < LARGE else begun(_is_finite, adapter, block)
    plan = bind(adapter, models, strict=strict, denoisers=denoisers, tokenizers=tokenizers)
    layers = plan.layers or {}
    owned = owned and (
        (alone is not None and plan.layers is not None)
        or can_be_kept(_tensors(delta for here in plan.deltas.values() for delta in here.values()))
    )
    placed = _each_its_own(plan.deltas) if owned else plan.deltas
    with Undo() as undo:
        if hotswap:
            _swap(placed, models, name, undo, owned=owned)
        else:
            before = _states(models)
            for component, model in models.items():
                if model is not None and component in placed:
                    state, here = get_state(model, undo), layers.get(component)
                    state.add(name, placed[component], undo, owned=owned, layers=here)
            for state in _states(models):
                state.set_active({name: Strength(strength)}, undo)
                if before and not any(other.enabled for other in before):
                    state.set_enabled(False, undo)
        if pipeline is not None:  # behind the layers: an embedding that carries one gets no rows
            put_tokens(pipeline, name, plan.embeddings, undo)
        finite = block is not None and (_is_finite(adapter, block) if looked is None else looked.result())
        _check_finite(None if finite else _not_finite(plan), strict)
    _log(plan.report, name, models)
    return plan.report


def _each_its_own(deltas: Mapping[str, Mapping[str, Delta]]) -> Mapping[str, Mapping[str, Delta]]:
    """Return deltas of which a second denoiser has tensors of its own, over the same memory.

    A file may be for both, which move one by one.
    """
    others = [component for component in DENOISERS if component in deltas][1:]
    return {**deltas, **{one: {path: apart(delta) for path, delta in deltas[one].items()} for one in others}}


def _tensors(deltas: Iterable[Delta]) -> list[Tensor]:
    return [tensor for delta in deltas for tensor in delta.tensors().values()]


def _swap(
    deltas: Mapping[str, Mapping[str, Delta]],
    models: Mapping[str, nn.Module | None],
    name: str,
    undo: Undo,
    *,
    owned: bool,
) -> None:
    first = next(state for state in _states(models) if name in state.adapters)
    acts, strength = name in first.active, Strength(first.strengths[name].value)
    for component, model in models.items():
        state = find_state(model)
        if component in deltas and model is not None:
            here = state or get_state(model, undo)
            known = name in here.adapters
            here.add(name, deltas[component], undo, replace=known, owned=owned)
            if acts and not known:
                here.set_active({**{n: here.strengths[n] for n in here.active}, name: strength}, undo)
            if not first.enabled and state is None:
                here.set_enabled(False, undo)
        elif state is not None and name in state.adapters:
            state.remove([name], undo)


def _is_finite(adapter: Adapter, block: Tensor) -> bool:
    """Whether the memory of an adapter's tensors holds no NaN and no infinity, once it is read."""
    adapter.arrived()
    return is_finite(block)


def _not_finite(plan: Plan) -> tuple[str, str] | None:
    """Return the path and the name of a tensor that turns every picture black, or None."""
    for component, deltas in plan.deltas.items():
        found = find_not_finite(deltas)
        if found is not None:
            return f"{component}.{found[0]}", found[1]
    return None


def _check_finite(wrong: tuple[str, str] | None, strict: bool) -> None:
    """Raise, or warn where it is not `strict`, when an adapter holds a NaN or an infinity.

    Raises:
        NotFiniteError: names the layer and its tensor.
    """
    if wrong is None:
        return
    message = (
        f"`{wrong[0]}`: the adapter's `{wrong[1]}` holds a NaN or an infinity, expected finite numbers. Its training "
        "went wrong, or the file is damaged; pictures drawn with it are black. Ask for an earlier save of it."
    )
    if strict:
        raise NotFiniteError(f"{message} `strict=False` loads it as it is.")
    log.warning(message)


def _log(report: LoadReport, name: str, models: Mapping[str, nn.Module | None]) -> None:
    if report.adds_nothing:
        log.warning(
            "%r adds nothing: what %s holds for %s is all zeros, as it is before the first step of a training. "
            "Pictures will be those of the base model. Ask for a later save of it.",
            name,
            report.source,
            " and ".join(part.component for part in report.components),
        )
    is_odd = report.unknown or report.mismatched or any(part.without_alpha for part in report.components)
    level = logging.WARNING if is_odd else logging.INFO
    log.log(level, "Loaded %r: %s", name, report)
    if any(not state.enabled for state in _states(models)):
        log.warning("Adapters are disabled on this pipeline: %r acts after `enable_lora()`.", name)


def _states(models: Mapping[str, nn.Module | None]) -> list[AdapterState]:
    return [state for model in models.values() if (state := find_state(model)) is not None]


def _default_name(loaded: list[str]) -> str:
    """Return `default_{i}`, i the number of adapters loaded, or the next number whose name is free."""
    return next(name for i in itertools.count(len(loaded)) if (name := f"default_{i}") not in loaded)


def loaded_names(models: Mapping[str, nn.Module | None]) -> list[str]:
    """Return the names of all adapters loaded on `models`, in the order of loading."""
    return list(dict.fromkeys(name for state in _states(models) for name in state.adapters))


def check_loaded(names: list[str], models: Mapping[str, nn.Module | None]) -> None:
    """Raise when one of `names` is loaded nowhere.

    Raises:
        UnknownAdapterError: names it, the loaded ones, and the likeliest meant.
    """
    states = _states(models)
    unknown = [name for name in names if not any(name in state.adapters for state in states)]
    if unknown:
        loaded = loaded_names(models)
        raise UnknownAdapterError(
            f"No adapter named {', '.join(map(repr, unknown))}: not in the list of present adapters "
            f"({', '.join(map(repr, loaded)) or 'none'}).{did_you_mean(unknown[0], loaded)}"
            + told_of_peft(models)
        )

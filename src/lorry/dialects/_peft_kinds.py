"""The types of PEFT's configs: which deltas each is of, and what its config must say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, final

import torch

from lorry.algebra import (
    BoftDelta,
    Delta,
    DoraDelta,
    HraDelta,
    Ia3Delta,
    LohaDelta,
    LokrDelta,
    LoraDelta,
    OftDelta,
    PartsDelta,
    ReplaceDelta,
    VeraDelta,
)

Deltas = Mapping[str, Any]
Pair = tuple[int, int]


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """One of PEFT's types."""

    name: str
    options: Callable[[Deltas], dict[str, Any]]
    """What a config must say of these deltas besides their ranks and alphas."""
    obstacles: Callable[[Deltas], dict[str, str]]
    """By path, which of these deltas the type's one config cannot describe together with the others."""
    alpha_name: str | None = None
    """None for a type without ranks."""
    rank: Callable[[Any], int] = lambda delta: delta.rank


def kind_of(delta: Delta) -> str:
    """Return the name of the type that a delta is of; of a delta that PEFT has none for, its family."""
    if isinstance(delta, PartsDelta):
        if isinstance(delta.on_bias, Ia3Delta):
            return "IA3"
        inner = delta.on_weight
        is_lora = inner is not None and kind_of(inner) == "LORA"
        return "LORA" if is_lora else delta.family
    if isinstance(delta, DoraDelta):
        return "LORA" if isinstance(delta.inner, LoraDelta) else f"DoRA over {delta.inner.family}"
    return _NAMES.get(type(delta), delta.family)


_NAMES: dict[type[Delta], str] = {
    LoraDelta: "LORA",
    LohaDelta: "LOHA",
    LokrDelta: "LOKR",
    OftDelta: "OFT",
    BoftDelta: "BOFT",
    Ia3Delta: "IA3",
    HraDelta: "HRA",
    VeraDelta: "VERA",
}


def _differing(values: Mapping[str, Any], what: str) -> dict[str, str]:
    """Say of the layers whose value is not that of the first that they differ from it."""
    first = next(iter(values.values()), None)
    return {path: f"{what}, which PEFT has on all layers or none" for path, v in values.items() if v != first}


def _has_magnitude(delta: Delta) -> bool:
    inner = delta.on_weight if isinstance(delta, PartsDelta) else delta
    return isinstance(inner, DoraDelta)


def _lora_options(deltas: Deltas) -> dict[str, Any]:
    return {
        "use_dora": any(map(_has_magnitude, deltas.values())),
        "lora_bias": any(
            isinstance(delta, PartsDelta) and not isinstance(delta.on_bias, ReplaceDelta)
            for delta in deltas.values()
        ),
    }


def _lora_obstacles(deltas: Deltas) -> dict[str, str]:
    has = {path: _has_magnitude(delta) for path, delta in deltas.items()}
    with_magnitude_first = dict(sorted(has.items(), key=lambda item: item[1]))
    return _differing(with_magnitude_first, "DoRA: a magnitude")


def _is_kernel(delta: Any) -> bool:
    return len(delta.shape) > 2 and max(delta.shape[2:]) > 1


def _core_obstacles(cores: Mapping[str, tuple[bool, bool]]) -> dict[str, str]:
    """By path, (is_kernel, has_core): cores are of all kernels larger than 1x1 or of none, and of nothing else."""
    odd = {p: "a Tucker core of a 1x1 kernel" for p, (kernel, core) in cores.items() if core and not kernel}
    return {**_differing({p: core for p, (kernel, core) in cores.items() if kernel}, "a Tucker core"), **odd}


def _loha_options(deltas: Deltas) -> dict[str, Any]:
    return {"use_effective_conv2d": any(delta.t1 is not None for delta in deltas.values())}


def _loha_obstacles(deltas: Deltas) -> dict[str, str]:
    return _core_obstacles({p: (_is_kernel(d), d.t1 is not None) for p, d in deltas.items()})


def _lokr_pairs(delta: LokrDelta) -> tuple[Pair, Pair]:
    """((out1, out2), (in1, in2)) of a delta's two matrices."""
    out1 = (delta.w1 if delta.w1 is not None else delta.w1_a).shape[0]  # pyright: ignore[reportOptionalMemberAccess]
    in1 = (delta.w1 if delta.w1 is not None else delta.w1_b).shape[1]  # pyright: ignore[reportOptionalMemberAccess]
    return (out1, delta.shape[0] // out1), (in1, delta.shape[1] // in1)


def _lokr_rank(delta: LokrDelta) -> int:
    """The rank, or one so large that PEFT factors nothing."""
    return delta.rank or max(max(pair) for pair in _lokr_pairs(delta))


def _factored(size: int, factor: int) -> Pair:
    """PEFT's two factors of a size. Source: huggingface/peft, `tuners/lokr/layer.py` (`factorization`)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = isqrt(size) if factor < 0 else min(factor, isqrt(size))
    first = next(n for n in range(limit, 0, -1) if size % n == 0)
    return first, size // first


def _fits(delta: LokrDelta, factor: int, both: bool) -> bool:
    """Whether PEFT makes the matrices of these shapes, whole where they are whole."""
    outs, ins = _lokr_pairs(delta)
    if outs != _factored(delta.shape[0], factor) or ins != _factored(delta.shape[1], factor):
        return False
    rank = _lokr_rank(delta)
    whole1 = not (both and rank < max(outs[0], ins[0]) / 2)
    whole2 = not rank < max(outs[1], ins[1]) / 2
    return whole1 == (delta.w1 is not None) and whole2 == (delta.w2 is not None)


def _lokr_setting(deltas: Deltas) -> tuple[int, bool]:
    """The factor that fits most layers, and whether `w1` is in factors anywhere."""
    both = any(delta.w1 is None for delta in deltas.values())
    factors = {-1, *(n for delta in deltas.values() for n, _ in _lokr_pairs(delta))}
    best = max(sorted(factors), key=lambda factor: sum(_fits(d, factor, both) for d in deltas.values()))
    return best, both


def _lokr_options(deltas: Deltas) -> dict[str, Any]:
    factor, both = _lokr_setting(deltas)
    core = any(delta.t2 is not None for delta in deltas.values())
    return {"decompose_factor": factor, "decompose_both": both, "use_effective_conv2d": core}


def _lokr_obstacles(deltas: Deltas) -> dict[str, str]:
    factor, both = _lokr_setting(deltas) if deltas else (-1, False)
    reason = "LoKr: matrices of shapes that PEFT does not make"
    misfits = {path: reason for path, delta in deltas.items() if not _fits(delta, factor, both)}
    cores = {p: (_is_kernel(d) and d.w2 is None, d.t2 is not None) for p, d in deltas.items()}
    return {**_core_obstacles(cores), **misfits}


def _oft_options(deltas: Deltas) -> dict[str, Any]:
    delta = next(iter(deltas.values()))
    series = {"use_cayley_neumann": delta.neumann_terms is not None}
    if delta.neumann_terms is not None:
        series["num_cayley_neumann_terms"] = delta.neumann_terms
    limit = delta.block_norm
    coft = {"coft": False} if limit is None else {"coft": True, "eps": limit}
    count, size = delta.blocks.shape[0], (1 + isqrt(1 + 8 * delta.blocks.shape[1])) // 2
    return {"r": 0, "oft_block_size": size, "block_share": count == 1, **series, **coft}


def _oft_obstacles(deltas: Deltas) -> dict[str, str]:
    own = {
        path: "OFT of the output side, or scaled"
        for path, delta in deltas.items()
        if not delta.on_input or delta.scaled or delta.rescale is not None
    }
    alike = {path: _oft_options({path: delta}) for path, delta in deltas.items() if path not in own}
    return {**own, **_differing(alike, "OFT with blocks of another size or other options")}


def _boft_options(deltas: Deltas) -> dict[str, Any]:
    stages, _, size, _ = next(iter(deltas.values())).blocks.shape
    return {"boft_block_size": size, "boft_block_num": 0, "boft_n_butterfly_factor": stages}


def _boft_obstacles(deltas: Deltas) -> dict[str, str]:
    own = {path: "BOFT of the output side" for path, delta in deltas.items() if not delta.on_input}
    alike = {path: _boft_options({path: delta}) for path, delta in deltas.items() if path not in own}
    return {**own, **_differing(alike, "BOFT with blocks of another size")}


def _is_on_input(delta: Delta) -> bool:
    return isinstance(delta, Ia3Delta) and delta.on_input


def _ia3_options(deltas: Deltas) -> dict[str, Any]:
    return {"feedforward_modules": sorted(path for path, delta in deltas.items() if _is_on_input(delta))}


def _hra_options(deltas: Deltas) -> dict[str, Any]:
    delta = next(iter(deltas.values()))
    return {"r": delta.u.shape[1], "apply_GS": delta.orthogonal}


def _hra_obstacles(deltas: Deltas) -> dict[str, str]:
    return _differing(
        {path: _hra_options({path: delta}) for path, delta in deltas.items()}, "HRA of another rank"
    )


def share_matrices(one: VeraDelta, other: VeraDelta) -> bool:
    """Whether two VeRAs are of the same shared matrices."""
    pairs = ((one.shared_a, other.shared_a), (one.shared_b, other.shared_b))
    return all(mine is its or (mine.dtype == its.dtype and torch.equal(mine, its)) for mine, its in pairs)


def _vera_options(deltas: Deltas) -> dict[str, Any]:
    return {"r": next(iter(deltas.values())).rank, "save_projection": True}


def _vera_obstacles(deltas: Deltas) -> dict[str, str]:
    first = next(iter(deltas.values()), None)
    reason = "VeRA: shared matrices of another VeRA"
    return {
        path: reason for path, delta in deltas.items() if first is None or not share_matrices(first, delta)
    }


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("LORA", _lora_options, _lora_obstacles, "lora_alpha"),
        Kind("LOHA", _loha_options, _loha_obstacles, "alpha"),
        Kind("LOKR", _lokr_options, _lokr_obstacles, "alpha", _lokr_rank),
        Kind("OFT", _oft_options, _oft_obstacles),
        Kind("BOFT", _boft_options, _boft_obstacles),
        Kind("HRA", _hra_options, _hra_obstacles),
        Kind("VERA", _vera_options, _vera_obstacles),
        Kind("IA3", _ia3_options, lambda _: {}),
    )
}

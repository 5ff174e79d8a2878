"""Fresh trainable adapters: made on a live model, trained through the side path that inference uses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lorry.algebra import LoraDelta
from lorry.binding import weight_shape
from lorry.errors import StateError, UnsupportedAdapterError
from lorry.names import check_adapter_name
from lorry.patching import AdapterState, Strength, Undo, find_state, get_state, unknown_adapter

Initialisation = Literal["kaiming", "gaussian"]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
"""The projections of attention layers, in denoisers and in CLIP."""


@final
@dataclass(frozen=True)
class AdapterConfig:
    """What a fresh LoRA looks like. The up factors start at zero, so that a fresh adapter changes nothing.

    Source: Hu et al., LoRA (arXiv:2106.09685), section 4.1.
    """

    rank: int = 4
    alpha: float | None = None
    """The strength is alpha / rank; None means alpha = rank."""
    target_modules: str | Sequence[str] = ATTENTION
    """The ends of module paths, or one regular expression for whole paths."""
    rank_stabilised: bool = False
    """The strength is alpha / sqrt(rank)."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks of modules whose path ends in (or matches) the key."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    initialisation: Initialisation = "kaiming"
    """Of the down factors: uniform as `nn.Linear`'s own weight, or normal with deviation 1 / rank."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise StateError(f"`rank`: expected at least 1, got {self.rank}.")

    @classmethod
    def of(cls, config: Any) -> AdapterConfig:
        """Return `config` as it is, or read it out of a PEFT `LoraConfig`.

        Raises:
            UnsupportedAdapterError: the configuration asks for something that lorry cannot train.
            StateError: it is neither.
        """
        if isinstance(config, cls):
            return config
        if not hasattr(config, "lora_alpha") or not hasattr(config, "r"):
            raise StateError(f"Expected an AdapterConfig or a PEFT LoraConfig, got {type(config).__name__}.")
        for name, neutral in _UNSUPPORTED.items():
            if getattr(config, name, None) not in neutral:
                raise UnsupportedAdapterError(
                    f"`{name}={getattr(config, name)!r}` cannot be trained by lorry."
                )
        return cls(
            rank=config.r,
            alpha=config.lora_alpha,
            target_modules=_targets(getattr(config, "target_modules", None)),
            rank_stabilised=bool(getattr(config, "use_rslora", False)),
            rank_pattern=dict(getattr(config, "rank_pattern", None) or {}),
            alpha_pattern=dict(getattr(config, "alpha_pattern", None) or {}),
            initialisation="gaussian"
            if getattr(config, "init_lora_weights", True) == "gaussian"
            else "kaiming",
        )


_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "lora_dropout": (None, 0, 0.0),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "exclude_modules": (None, []),
    "layers_to_transform": (None, []),
    "layers_pattern": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "init_lora_weights": (None, True, "gaussian"),
}


def _targets(given: object) -> str | Sequence[str]:
    if given is None:
        return ATTENTION
    return given if isinstance(given, str) else sorted(str(target) for target in given)  # type: ignore[union-attr]


def add_adapter(
    model: nn.Module,
    config: object,
    adapter_name: str = "default",
    *,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Put a fresh trainable adapter on a model, active at strength 1; the model's own weights are frozen.

    Args:
        model: a denoiser or text encoder.
        config: an `AdapterConfig`, or a PEFT `LoraConfig`.
        adapter_name: what to call it.
        dtype: of its parameters.
        generator: for the down factors.

    Returns:
        Its parameters, which are also in `model.parameters()` while it is active: (rank, in[, kh, kw]) and (out, rank)
        for each target.

    Raises:
        StateError: no module matches, or the name is taken.
        UnsupportedAdapterError: the configuration asks for something that lorry cannot train.
    """
    plain = AdapterConfig.of(config)
    name = check_adapter_name(adapter_name)
    deltas = {
        path: _fresh(plain, path, m, dtype, generator) for path, m in _matching(model, plain.target_modules)
    }
    if not deltas:
        raise StateError(f"No layer of {type(model).__name__} matches the targets {plain.target_modules!r}.")
    with Undo() as undo:
        state = get_state(model, undo)
        state.add_trainable(name, deltas, undo)
        state.set_active({name: Strength()}, undo)
        for parameter in [p for key, p in model.named_parameters() if ".lorry_" not in f".{key}"]:
            undo.set_attribute(parameter, "requires_grad", False)
    return [p for delta in deltas.values() for p in delta.tensors().values() if isinstance(p, nn.Parameter)]


def _matching(model: nn.Module, targets: str | Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    if targets == "all-linear":
        return ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear))
    matches = _matcher(targets)
    return (
        (path, module)
        for path, module in model.named_modules()
        if matches(path) and len(weight_shape(module) or ()) > 1
    )


def _matcher(targets: str | Sequence[str]) -> Callable[[str], bool]:
    if isinstance(targets, str):
        return lambda path: re.fullmatch(targets, path) is not None
    return lambda path: any(path == target or path.endswith(f".{target}") for target in targets)


def _pattern_value(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if re.search(rf"(^|.*\.)({key})$", path)), default)


def _fresh(
    config: AdapterConfig, path: str, module: nn.Module, dtype: torch.dtype, generator: torch.Generator | None
) -> LoraDelta:
    out, *rest = weight_shape(module) or (0,)
    rank = _pattern_value(config.rank_pattern, path, config.rank)
    alpha = _pattern_value(config.alpha_pattern, path, config.alpha)
    device = module.get_parameter("weight").device
    down = torch.empty(rank, *rest, dtype=torch.float32)
    if config.initialisation == "gaussian":
        nn.init.normal_(down, std=1 / rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
    up = torch.zeros(out, rank, dtype=dtype, device=device)
    return LoraDelta(
        nn.Parameter(down.to(device, dtype)),
        nn.Parameter(up),
        alpha=alpha,
        rank_stabilised=config.rank_stabilised,
    )


def get_adapter_state_dict(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return an adapter's tensors as `save_lora_weights` takes them, and diffusers and PEFT name them.

    Returns:
        `{path}.lora_A.weight` (rank, in[, kh, kw]) and `{path}.lora_B.weight` (out, rank[, 1, 1]); detached views of
        the adapter's own memory.

    Raises:
        UnknownAdapterError: no adapter of that name is loaded on the model.
    """
    tensors = {}
    for path, delta in _deltas(model, adapter_name).items():
        pair = delta.low_rank()
        if pair is None:
            raise UnsupportedAdapterError(f"`{path}`: {delta.family} cannot be saved as a LoRA.")
        tensors[f"{path}.lora_A.weight"] = pair.down.detach()
        tensors[f"{path}.lora_B.weight"] = pair.up.detach().reshape(
            *pair.up.shape, *(1 for _ in pair.down.shape[2:])
        )
    return tensors


def get_adapter_metadata(model: nn.Module, adapter_name: str = "default") -> dict[str, Any]:
    """Return an adapter's configuration in PEFT's words, for `save_lora_weights(…, unet_lora_adapter_metadata=…)`.

    Raises:
        UnknownAdapterError: no adapter of that name is loaded on the model.
    """
    deltas = _deltas(model, adapter_name)
    ranks = {path: delta.rank or 0 for path, delta in deltas.items()}
    alphas = {path: delta.rank_scale * ranks[path] for path, delta in deltas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(deltas),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "use_rslora": False,
        "bias": "none",
    }


def _deltas(model: nn.Module, name: str) -> Mapping[str, Any]:
    state: AdapterState | None = find_state(model)
    if state is None or name not in state.adapters:
        raise unknown_adapter(name, [] if state is None else state.adapters)
    return state.adapters[name].deltas

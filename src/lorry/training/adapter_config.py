"""What a fresh adapter looks like: its family, its size, and the layers it is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast, final, get_args

from lorry.errors import StateError, UnsupportedAdapterError, did_you_mean
from lorry.training.settings import Family, Initialisation
from lorry.training.targets import ATTENTION, Targets

OF_THE_WEIGHT: Final[tuple[Initialisation, ...]] = ("pissa", "olora")
"""Those that begin out of the base weight, and train how far they are from there."""


@final
@dataclass(frozen=True)
class AdapterConfig:
    """What a fresh adapter looks like. It starts as one that changes nothing, whatever its family.

    Source: Hu et al., LoRA (arXiv:2106.09685), section 4.1; for the other families, those of `lorry.algebra`.
    """

    rank: int = 4
    """For OFT the size of the blocks: the first number from here on that divides the rows. (IA)^3 has no rank."""
    alpha: float | None = None
    """The strength is alpha / rank; None means alpha = rank. OFT and (IA)^3 have none."""
    target_modules: Targets = ATTENTION
    """A preset (`attention`, `blocks`, `conv`, joined by `+`, or `full`), the ends of module paths, or one regular
    expression for whole paths."""
    family: Family = "lora"
    conv_rank: int | None = None
    """Of convolutions with a kernel larger than 1x1; None means `rank`."""
    conv_alpha: float | None = None
    """Of those convolutions; None means `conv_rank`, or `alpha` where that is None too."""
    rank_stabilised: bool = False
    """The strength is alpha / sqrt(rank): without an alpha sqrt(rank)."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks of modules whose path ends in (or matches) the key."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    initialisation: Initialisation = "kaiming"
    """Of the down factors, beside up factors of zeros: uniform as `nn.Linear`'s own weight (kaiming), or normal with
    deviation 1 / rank (gaussian). Or of both, for a LoRA, out of the base weight: its largest singular triples (pissa)
    or the first columns of its QR (olora), of which what they were at the beginning is subtracted. What is saved of
    those is a LoRA of twice the rank, of what has changed."""
    iterations: int = 0
    """Of a fast, approximate decomposition for pissa; 0 is the exact one."""

    def __post_init__(self) -> None:
        least = 2 if self.family == "oft" else 1
        for name, value in (("rank", self.rank), ("conv_rank", self.conv_rank)):
            if value is not None and value < least:
                why = " for oft, where a block of 1 turns nothing" if least > 1 else ""
                raise StateError(f"`{name}`: expected at least {least}{why}, got {value}.")
        for name, value, known in (
            ("family", self.family, get_args(Family)),
            ("initialisation", self.initialisation, get_args(Initialisation)),
        ):
            if value not in known:
                raise StateError(
                    f"`{name}`: expected one of {', '.join(known)}, got {value!r}.{did_you_mean(value, known)}"
                )
        if self.initialisation in OF_THE_WEIGHT and self.family != "lora":
            raise StateError(
                f"`initialisation`: {self.initialisation} is for LoRA, and `family` is {self.family!r}."
            )
        if self.iterations and self.initialisation != "pissa":
            raise StateError(f"`iterations` are for pissa, and `initialisation` is {self.initialisation!r}.")
        if self.rank_stabilised and self.family not in ("lora", "dora"):
            raise StateError(f"`rank_stabilised` is for LoRA and DoRA, and `family` is {self.family!r}.")

    def of_kernel(self, *, wide: bool) -> tuple[int, float | None]:
        """Return the rank and alpha of layers whose kernel is larger than 1x1 (`wide`), or of all others."""
        if not wide or self.conv_rank is None:
            return self.rank, self.conv_alpha if wide and self.conv_alpha is not None else self.alpha
        return self.conv_rank, self.conv_alpha

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
        initialisation, iterations = _initialisation(getattr(config, "init_lora_weights", True))
        for name, neutral in _UNSUPPORTED.items():
            if getattr(config, name, None) not in neutral:
                raise UnsupportedAdapterError(
                    f"`{name}={getattr(config, name)!r}` cannot be trained by lorry."
                )
        return cls(
            rank=config.r,
            alpha=config.lora_alpha,
            target_modules=_targets(getattr(config, "target_modules", None)),
            family="dora" if getattr(config, "use_dora", False) else "lora",
            rank_stabilised=bool(getattr(config, "use_rslora", False)),
            rank_pattern=dict(getattr(config, "rank_pattern", None) or {}),
            alpha_pattern=dict(getattr(config, "alpha_pattern", None) or {}),
            initialisation=initialisation,
            iterations=iterations,
        )


_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "lora_dropout": (None, 0, 0.0),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "exclude_modules": (None, []),
    "layers_to_transform": (None, []),
    "layers_pattern": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
}


def _initialisation(given: Any) -> tuple[Initialisation, int]:
    """Read PEFT's `init_lora_weights`: True, or a name, for a fast pissa with its iterations (`pissa_niter_16`)."""
    if given in (None, True):
        return "kaiming", 0
    name, _, iterations = str(given).partition("_niter_")
    if name not in get_args(Initialisation) or not (iterations or "0").isdecimal():
        raise UnsupportedAdapterError(f"`init_lora_weights={given!r}` cannot be trained by lorry.")
    return cast(Initialisation, name), int(iterations or 0)


def _targets(given: object) -> Targets:
    if given is None:
        return ATTENTION
    return given if isinstance(given, str) else sorted(str(target) for target in given)  # type: ignore[union-attr]

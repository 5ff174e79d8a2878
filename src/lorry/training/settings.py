"""Every setting of a run: one place for its name, its default and what it means; read from and written as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self, final, get_args, get_origin, get_type_hints

from lorry.errors import SettingsError, did_you_mean

SHIPPED = "shipped"
"""What the base that comes with lorry is called."""
Family = Literal["lora", "dora", "loha", "lokr", "ia3", "oft"]
Initialisation = Literal["kaiming", "gaussian", "pissa", "olora"]
Precision = Literal["auto", "float32", "bf16", "fp16"]
Quantization = Literal["none", "4bit", "8bit", "torchao-int8", "quanto-int8"]
Optimiser = Literal["adamw", "adamw8bit", "schedulefree"]
Schedule = Literal["constant", "cosine", "linear"]


def setting(section: str, default: Any, text: str) -> Any:
    """One setting: the table of the TOML file that it stands in, its default, and what it means."""
    return field(default=default, metadata={"section": section, "help": text})


@final
@dataclass(frozen=True)
class Settings:
    """What `lorry train` is told. `docs/training.md` explains the settings."""

    data: str = setting("run", "", "The folder of pictures.")
    base: str = setting(
        "run", SHIPPED, "The base model: a folder in diffusers' layout, a Hub id, or shipped."
    )
    out: str = setting("run", "", "The folder that the run writes into.")
    name: str = setting(
        "run", "", "The adapter's name, and its file's; that of the folder of pictures when empty."
    )
    title: str = setting("run", "", "What the file says that it is called; the name when empty.")
    dialect: str = setting(
        "run",
        "",
        "What the adapter is written as: diffusers, kohya, …; when empty diffusers, or kohya where that has no names "
        "for the family.",
    )
    steps: int = setting("run", 1000, "Optimiser steps in all.")
    seed: int = setting("run", 0, "Of everything random.")
    precision: Precision = setting(
        "run", "auto", "Of base and activations; auto: float32 on a CPU, else bf16 or fp16."
    )
    quantize: Quantization = setting(
        "run",
        "none",
        "Hold the denoiser's weights in fewer bits: of bitsandbytes (4bit, 8bit), torchao or quanto.",
    )
    checkpointing: bool = setting(
        "run", False, "Compute activations twice instead of keeping them: less memory."
    )
    save_every: int = setting("run", 250, "Steps from one checkpoint to the next.")
    keep: int = setting("run", 2, "Checkpoints to keep; all adapters are kept.")

    family: Family = setting("adapter", "lora", "The kind of adapter.")
    rank: int = setting("adapter", 8, "Its rank; the size of the blocks for oft.")
    alpha: float | None = setting("adapter", None, "Strength is alpha / rank; the rank when not given.")
    conv_rank: int | None = setting(
        "adapter", None, "Rank of kernels larger than 1x1; `rank` when not given."
    )
    conv_alpha: float | None = setting("adapter", None, "Alpha of kernels larger than 1x1.")
    targets: str = setting("adapter", "blocks", "Layers: attention, blocks, conv, joined with +, or full.")
    rank_stabilised: bool = setting("adapter", False, "Strength is alpha / sqrt(rank).")
    init: Initialisation = setting(
        "adapter",
        "kaiming",
        "How the factors of a lora or dora begin: random (kaiming, gaussian), or out of the weight (pissa, olora: "
        "lora only, and the file has twice the rank).",
    )
    init_iterations: int = setting(
        "adapter", 0, "Of a fast, approximate decomposition for pissa, 16 as a rule; 0: the exact one."
    )
    text_encoder: bool = setting("adapter", False, "Train the CLIP text encoders too.")
    text_rank: int | None = setting("adapter", None, "Rank in text encoders; `rank` when not given.")
    text_alpha: float | None = setting(
        "adapter", None, "Alpha in text encoders; `alpha` when neither is given."
    )

    resolution: int = setting(
        "data", 0, "Pictures are trained at about this many pixels squared; 0: the base's own."
    )
    buckets: bool = setting(
        "data", True, "Keep pictures' aspect ratios; otherwise the middle square is cut out."
    )
    bucket_step: int = setting("data", 0, "Sides are multiples of this; 0: what the base needs.")
    flip: bool = setting(
        "data", False, "Mirror every other picture. Not for text, faces or things with a left side."
    )
    trigger: str = setting("data", "", "A word put in front of every caption.")
    trigger_words: tuple[str, ...] = setting(
        "data",
        (),
        "What the file says that prompts are to hold, where captions have it; `trigger` when not given.",
    )
    caption_dropout: float = setting("data", 0.05, "The share of captions left out.")
    prior: str = setting(
        "data", "", "A folder of pictures of the class, that the adapter is to leave as it was."
    )
    prior_prompt: str = setting(
        "data", "", "Draw the prior pictures with the base, by this prompt, in the place of `prior`."
    )
    prior_count: int = setting("data", 100, "How many of them to draw.")
    prior_weight: float = setting("data", 1.0, "Of their loss.")

    batch: int = setting("optimiser", 1, "Pictures a step in each process.")
    accumulate: int = setting("optimiser", 1, "Batches a step in each process.")
    optimiser: Optimiser = setting("optimiser", "adamw", "adamw, adamw8bit (bitsandbytes) or schedulefree.")
    rate: float = setting("optimiser", 1e-4, "The learning rate.")
    text_rate: float | None = setting("optimiser", None, "Of text encoders; `rate` when not given.")
    weight_decay: float = setting("optimiser", 0.01, "Of the optimiser.")
    beta2: float = setting("optimiser", 0.99, "How slowly the optimiser forgets squared gradients.")
    warmup: int = setting("optimiser", 0, "Steps in which the rate rises to its full height.")
    schedule: Schedule = setting("optimiser", "cosine", "How the rate falls afterwards.")
    clip: float = setting("optimiser", 1.0, "The largest norm of all gradients together; 0 for no limit.")
    ema: float = setting("optimiser", 0.0, "Save a moving average with this decay; 0 for none.")

    min_snr: float = setting("loss", 0.0, "Gamma of min-SNR weighting, 5 as a rule; 0 for none.")
    noise_offset: float = setting(
        "loss", 0.0, "Noise that is the same all over a channel, 0.05 as a rule; 0 for none."
    )

    sample_every: int = setting(
        "watch", 0, "Steps from one row of the contact sheet to the next; 0 for no sheet."
    )
    sample_prompts: tuple[str, ...] = setting(
        "watch", (), "What to draw for it; the first captions when not given."
    )
    sample_steps: int = setting("watch", 20, "Denoising steps of each.")
    sample_guidance: float = setting("watch", 3.0, "How closely they follow their prompts.")
    tensorboard: bool = setting("watch", True, "Write TensorBoard logs where that is installed.")

    def __post_init__(self) -> None:
        kinds = kinds_of_settings()
        for one in fields(self):
            _check_kind(one.name, getattr(self, one.name), kinds[one.name])
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise SettingsError(f"`{name}`: expected at least 1, got {getattr(self, name)}.")
        for name in _NOT_NEGATIVE:
            if (value := getattr(self, name)) is not None and value < 0:
                raise SettingsError(f"`{name}`: expected 0 or more, got {value}.")
        for name in _ABOVE_ZERO:
            if (value := getattr(self, name)) is not None and value <= 0:
                raise SettingsError(f"`{name}`: expected more than 0, got {value}.")
        for name in ("caption_dropout", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"`{name}`: expected a share from 0 to 1, got {getattr(self, name)}.")
        if not 0 <= self.beta2 < 1:
            raise SettingsError(f"`beta2`: expected a number from 0 to below 1, got {self.beta2}.")
        if self.name in (".", "..") or any(one in self.name for one in "/\\\0"):
            raise SettingsError(
                f"`name`: expected the name of a file without its ending, got {self.name!r}. `out` says the folder."
            )
        if self.prior and self.prior_prompt:
            raise SettingsError("`prior` and `prior_prompt` at once: give pictures, or what to draw.")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `written` wrote, or a person.

        Raises:
            SettingsError: it is not there, no TOML, or has a setting that lorry does not know.
        """
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise SettingsError(f"{path}: is no TOML: {error}.") from error
        try:
            return cls().changed(_flattened(tables))
        except SettingsError as error:
            error.add_note(f"in {path}")
            raise

    def changed(self, values: Mapping[str, Any]) -> Self:
        """Return these settings with others in their place; lists are taken for tuples, ints for floats.

        Raises:
            SettingsError: one is unknown, or its value of a wrong kind.
        """
        kinds = kinds_of_settings()
        for name in values:
            if name not in kinds:
                raise SettingsError(f"There is no setting {name!r}.{did_you_mean(name, kinds)}")
        return replace(self, **{name: _plain(value, kinds[name]) for name, value in values.items()})

    def placed(self) -> Self:
        """Return these settings with the whole path of each folder, so that they say the same from anywhere."""
        folders = {name: getattr(self, name) for name in ("base", "data", "prior", "out")}
        there = {
            name: path for name, path in folders.items() if path and (name == "out" or Path(path).exists())
        }
        if self.base == SHIPPED:
            there.pop("base", None)
        return replace(self, **{name: str(Path(path).absolute()) for name, path in there.items()})

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return all settings as the tables of a TOML file; those that are None are left out."""
        found: dict[str, dict[str, Any]] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None:
                found.setdefault(one.metadata["section"], {})[one.name] = (
                    list(value) if isinstance(value, tuple) else value
                )
        return found

    def written(self) -> str:
        """Return them as TOML, which `read` reads back."""
        import tomli_w

        return tomli_w.dumps(self.tables(), multiline_strings=False)


_AT_LEAST_ONE = ("steps", "save_every", "keep", "rank", "batch", "accumulate", "sample_steps", "prior_count")
_NOT_NEGATIVE = (
    "resolution",
    "bucket_step",
    "init_iterations",
    "rate",
    "text_rate",
    "weight_decay",
    "warmup",
    "clip",
    "min_snr",
    "noise_offset",
    "prior_weight",
    "sample_every",
)
_ABOVE_ZERO = ("alpha", "conv_rank", "conv_alpha", "text_rank", "text_alpha")

_OF_NO_USE_WITHOUT: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("text_rank", "text_alpha", "text_rate"), ("text_encoder",)),
    (("prior_count",), ("prior_prompt",)),
    (("prior_weight",), ("prior", "prior_prompt")),
)
"""(settings, those of which one must be given for them to do anything). What samples are drawn of and how is not among
them: a run without samples is begun by `sample_every` alone, whatever its file says of them.
"""


def check_used(settings: Settings) -> None:
    """Raise where a setting was changed that does nothing beside the others.

    Raises:
        SettingsError: names it, and the one that it needs.
    """
    usual = {one.name: one.default for one in fields(Settings)}
    for names, needed in _OF_NO_USE_WITHOUT:
        idle = [name for name in names if getattr(settings, name) != usual[name]]
        if idle and not any(getattr(settings, name) for name in needed):
            wanted = " or ".join(f"`{name}`" for name in needed)
            raise SettingsError(
                f"`{idle[0]}` does nothing without {wanted}: give that too, or leave it away."
            )


def setting_fields() -> tuple[Field[Any], ...]:
    """Return the settings as dataclass fields: `metadata` has their `section` and `help`."""
    return fields(Settings)


def kinds_of_settings() -> dict[str, Any]:
    """Return the type of each setting."""
    return get_type_hints(Settings)


def _flattened(tables: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    homes = {one.name: one.metadata["section"] for one in fields(Settings)}
    for section, table in tables.items():
        if not isinstance(table, dict) and section not in homes:
            flat[section] = table  # that there is no such setting is said where the others are looked at
            continue
        if not isinstance(table, dict):
            raise SettingsError(
                f"`{section}` stands outside of the tables: expected it under [{homes.get(section)}]."
            )
        for name, value in table.items():
            if homes.get(name, section) != section:
                raise SettingsError(f"`{name}` stands in [{section}]: it belongs in [{homes[name]}].")
            flat[name] = value
    return flat


def _plain(value: Any, kind: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    takes_float = kind is float or float in get_args(kind)
    return float(value) if takes_float and isinstance(value, int) and not isinstance(value, bool) else value


def _check_kind(name: str, value: Any, kind: Any) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            near = did_you_mean(str(value), get_args(kind))
            raise SettingsError(
                f"`{name}`: expected one of {', '.join(get_args(kind))}, got {value!r}.{near}"
            )
        return
    if get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    else:
        allowed = get_args(kind) or (kind,)
        fits = isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)
    if not fits:
        wanted = "a list of texts" if get_origin(kind) is tuple else (get_args(kind) or (kind,))[0].__name__
        raise SettingsError(f"`{name}`: expected {wanted}, got {value!r}.")
    if isinstance(value, float) and not isfinite(value):
        raise SettingsError(f"`{name}`: expected a finite number, got {value}.")

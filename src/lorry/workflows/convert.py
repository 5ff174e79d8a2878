"""An adapter file in another dialect: the same tensors under other names, or a reason why not."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import nn

from lorry.adapters import Adapter, Ignored
from lorry.binding import (
    Base,
    base_of_adapter,
    base_of_models,
    in_names_of_model,
    in_original_names,
    is_told,
    join_exactly,
    size_of,
    titles_of_adapter,
)
from lorry.dialects import DIALECTS, METADATA_KEY, Dialect, check_replaceable, get_dialect, read_adapter
from lorry.errors import FileError, UnsupportedAdapterError, some
from lorry.files import (
    HASH_KEYS,
    TensorFile,
    check_folder,
    read_adapter_file,
    rehashed,
    write_folders,
    write_safetensors,
)
from lorry.workflows.accuracy import Errors
from lorry.workflows.approximating import Approximation, Approximator
from lorry.workflows.finite import check_read

FOLDERS = "peft"
"""The dialect that is a folder and not a file."""
SAY_IT = "Say it: `--base NAME`, or `--base FOLDER` of a pipeline."
Models = Mapping[str, nn.Module]
FindModels = Callable[[Base | None], Models | None]
"""Gives the components of a base model, for their names and shapes; None where it is not known."""


@final
@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did."""

    source: str
    destination: str
    from_dialect: str
    to_dialect: str
    base: str | None
    """The title of the base model that the adapter is for, or of all that it may be for."""
    named_as: str | None
    """The likeliest of these, whose names were written, where it may be for several."""
    families: Mapping[str, int]
    """{family: how many layers}, as they were."""
    tensors: int
    nbytes: int
    left_out: tuple[Ignored, ...]
    """Keys of the source that are no part of the adapter."""
    approximations: tuple[Approximation, ...]
    error: Errors | None
    """Of the approximated layers together; None where everything is exact."""

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        layers = ", ".join(f"{count} {family}" for family, count in self.families.items())
        base = f" for {self.base}" if self.base else ""
        base += f", named as those of {self.named_as} (`--base` says another)" if self.named_as else ""
        yield f"{self.source}: {self.from_dialect}, {layers}{base}"
        how = (
            "exact" if self.error is None else f"{len(self.approximations)} layers approximated, {self.error}"
        )
        yield f"  {self.destination}: {self.to_dialect}, {self.tensors} tensors, {size_of(self.nbytes)}, {how}"
        yield from (f"  {made}" for made in self.approximations)
        reasons: dict[str, list[str]] = {}
        for item in self.left_out:
            reasons.setdefault(item.reason, []).append(item.key)
        yield from (f"  left out, {reason}: {some(keys, 3)}" for reason, keys in reasons.items())


def convert_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: str,
    find_models: FindModels = lambda _: None,
    *,
    approximator: Approximator | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write an adapter in another dialect. Its metadata go with it, with the hashes that it names made anew.

    Args:
        source: a file, a folder, or the id of a repository of the Hub.
        destination: a safetensors file; for `"peft"` a folder, which gets a folder for each component.
        to: a dialect that lorry writes.
        find_models: gives the base model's components, from the base that the file was made for, as far as it tells.
            Components that it gives for None are what the caller says, and go before that.
        approximator: gives other forms to what the dialect has no names for; such is refused when None.
        overwrite: replace what is at `destination`, if that is an adapter, or empty.

    Raises:
        FileError: the source cannot be read, or the destination not be written.
        FormatError: the source is not understood.
        BindingError: it does not fit the base model.
        UnsupportedAdapterError: the dialect cannot carry what it holds.
        NotFiniteError: it is to be approximated, and holds a NaN or an infinity.
    """
    dialect = _written(to)
    destination = Path(destination)
    _check_place(destination, dialect, overwrite)
    adapter = _read(source)
    if approximator is not None:
        check_read(adapter)
    said, told = find_models(None), base_of_adapter(adapter)
    models = find_models(told) if said is None else said
    base = base_of_models(said or {}) or (told if is_told(adapter) else None)
    file, named = convert_adapter(adapter, dialect, base, models, approximator)
    hashes = {key: adapter.metadata[key] for key in HASH_KEYS if key in adapter.metadata}
    header = {**file.metadata, **hashes}
    if dialect.name == FOLDERS:
        write_folders(destination, replace(file, metadata=header))
    else:
        write_safetensors(destination, file.tensors, rehashed(file.tensors, header))
    made = tuple(approximator.made) if approximator else ()
    return Conversion(
        source=adapter.source,
        destination=str(destination),
        from_dialect=adapter.dialect,
        to_dialect=dialect.name,
        base=base.title if base else titles_of_adapter(adapter),
        named_as=told.title if told and models and not base else None,
        families=dict(Counter(entry.delta.family for entry in adapter.entries)),
        tensors=len(file.tensors),
        nbytes=sum(tensor.nbytes for tensor in file.tensors.values()),
        left_out=tuple(item for item in named.ignored if not item.reason.startswith("the same")),
        approximations=made,
        error=approximator.errors.total() if approximator and made else None,
    )


def convert_adapter(
    adapter: Adapter,
    dialect: Dialect,
    base: Base | None = None,
    models: Models | None = None,
    approximator: Approximator | None = None,
) -> tuple[TensorFile, Adapter]:
    """Return an adapter as a file of a dialect, and the adapter under the names that it has there."""
    join = approximator.join if approximator else join_exactly
    if models is None:
        named, titles = adapter, titles_of_adapter(adapter)
        if dialect.block_names == "original":
            raise UnsupportedAdapterError(
                f"{adapter.source}: the dialect {dialect.name!r} has the names of the original checkpoint, and which "
                f"base model the adapter is for cannot be told{_beyond(titles)}. {SAY_IT}"
            )
        to_diffusers = dialect.block_names == "diffusers"
        if titles and not is_told(adapter) and to_diffusers != (adapter.block_names == "diffusers"):
            raise UnsupportedAdapterError(
                f"{adapter.source}: what the dialect {dialect.name!r} calls these layers depends on the base model, "
                f"and which one the adapter is for cannot be told{_beyond(titles)}. {SAY_IT}"
            )
    elif dialect.only_for and not any(type(model).__name__ in dialect.only_for for model in models.values()):
        made_for = base.title if base else " and ".join(type(model).__name__ for model in models.values())
        raise UnsupportedAdapterError(
            f"{adapter.source}: files of the dialect {dialect.name!r} are for a {' or '.join(dialect.only_for)}, "
            f"and the adapter is for {made_for}. `--to comfyui` has the original checkpoint's names of any model."
        )
    elif _has_original_names(dialect, base, models):
        named = in_original_names(adapter, models, join, apart=dialect.numbers_parts)
    else:
        named = in_names_of_model(adapter, models)
    if base is not None and base.kohya and dialect.name in ("kohya", "lycoris"):
        named = replace(named, metadata={"ss_base_model_version": base.kohya, **named.metadata})
    if approximator is not None:
        named = approximator.fit(named, dialect)
    return dialect.write(named), named


def _beyond(titles: str | None) -> str:
    return f" beyond {titles}" if titles else ""


def _has_original_names(dialect: Dialect, base: Base | None, models: Models) -> bool:
    if dialect.block_names != "trained":
        return dialect.block_names == "original"
    return "unet" not in models if base is None else not base.diffusers_names


def _written(name: str) -> Dialect:
    dialect = get_dialect(name)
    if not dialect.is_written:
        known = ", ".join(dialect.name for dialect in DIALECTS if dialect.is_written)
        raise UnsupportedAdapterError(
            f"lorry reads the dialect {name!r} and does not write it. Written are: {known}."
        )
    return dialect


def _check_place(destination: Path, dialect: Dialect, overwrite: bool) -> None:
    if destination.exists() and not overwrite:
        raise FileError(f"{destination} is there already. Choose another place, or `--overwrite`.")
    is_folder = dialect.name == FOLDERS
    if is_folder and destination.suffix:
        raise FileError(
            f"{destination}: PEFT has a folder for each component. Give a folder's name, without a suffix."
        )
    if not is_folder and destination.suffix != ".safetensors":
        raise FileError(f"{destination}: expected a file that ends in .safetensors.")
    if is_folder:
        check_folder(destination)
    else:
        check_replaceable(destination)


def _read(source: str | os.PathLike[str]) -> Adapter:
    """Read an adapter, with the config beside its file among its metadata."""
    file = read_adapter_file(source)
    adapter = read_adapter(file)
    if file.config is None:
        return adapter
    return replace(adapter, metadata={**adapter.metadata, METADATA_KEY: json.dumps(dict(file.config))})

"""Adapters fused into a checkpoint for good: a new folder or file, written one tensor at a time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from lorry.adapters import Adapter, Ignored
from lorry.algebra import Delta
from lorry.binding import LoadReport, bind, size_of
from lorry.errors import FileError, NotFiniteError, StateError
from lorry.files import stream_safetensors
from lorry.patching.finite import is_finite
from lorry.patching.fusing import fused_parameter
from lorry.workflows.checkpoints import Checkpoint, Place, Reader, open_checkpoint, skeleton_of
from lorry.workflows.finite import read_finite
from lorry.workflows.progress import Progress, silent
from lorry.workflows.storing import get_dtype


@final
@dataclass(frozen=True, eq=False, slots=True)
class _Term:
    """What one adapter adds to a parameter."""

    place: Place
    delta: Delta
    strength: float
    weight_of: Callable[[str], Tensor]
    """Gives a layer's weight as the checkpoint has it: for a delta that works on the rows of several together."""


Terms = dict[str, list[_Term]]
"""{key of a file: what is added to its tensor}."""
BAKED_KEY = "lorry.baked"
SAFE = ".safetensors"


@final
@dataclass(frozen=True, slots=True)
class BakeReport:
    """What was fused into what."""

    base: str
    adapters: tuple[tuple[LoadReport, float], ...]
    """What each adapter changed, and its strength."""
    tensors: int
    """How many tensors of the checkpoint have other bits."""
    unmoved: int
    """How many have the bits that they had: what was added is zero, or rounded away."""
    path: str
    size: int
    """The bytes of the files that hold changed tensors."""

    def as_dict(self) -> dict[str, Any]:
        """The report in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.base}: {self.tensors} tensors changed"]
        if self.unmoved:
            lines.append(f"  {self.unmoved} stayed as they are: what was added is zero, or rounded away")
        for report, strength in self.adapters:
            lines += [
                f"  at {strength:g}: {line}" if n == 0 else f"    {line}"
                for n, line in enumerate(str(report).splitlines())
            ]
        return "\n".join([*lines, f"  {self.path}, {size_of(self.size)}"])


def bake_files(
    base: str | os.PathLike[str],
    sources: Sequence[tuple[str | os.PathLike[str], float]],
    out: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    strict: bool = True,
    progress: Progress = silent,
) -> BakeReport:
    """Fuse adapters into a checkpoint and write the result beside it.

    `W + sum(strength * delta)` is computed in float32 from the checkpoint's own weights and rounded once, as
    `fuse_lora` does it. A folder is copied with all that it holds; tensors that no adapter changes keep their bits.

    Args:
        base: a pipeline's folder, a component's folder, or a single file.
        sources: adapters, each with its strength.
        out: a new folder, or a new file, as `base` is.
        dtype: to write changed files' floating-point tensors in; that of each tensor when None.
        strict: refuse an adapter of which any tensor has no place; else the rest is fused, and the report says so.
        progress: told of each file's tensors.

    Raises:
        StateError: every strength is 0.
        BindingError: an adapter does not fit the checkpoint.
        NotFiniteError: an adapter, or the sum, holds a NaN or an infinity; nothing is written.
        FileError: `out` is there already, is inside `base`, or cannot be written.
    """
    out, chosen = Path(out), get_dtype(dtype)
    if out.exists():
        raise FileError(f"{out} is there already. Choose another name, or remove it first.")
    if Path(base).is_dir() and out.resolve().is_relative_to(Path(base).resolve()):
        raise FileError(f"{out} is inside {base}, which is copied: choose a place outside of it.")
    if Path(base).is_file() and out.suffix != SAFE:
        raise FileError(
            f"{out}: a single file is written as a safetensors file. Let its name end in `{SAFE}`."
        )
    if all(strength == 0 for _, strength in sources):
        raise StateError("Every strength is 0: the checkpoint would be as it is.")
    moved: set[tuple[Path, str]] = set()
    with open_checkpoint(base) as checkpoint:
        models = {name: skeleton_of(checkpoint, name) for name in checkpoint.components}
        terms: dict[Path, Terms] = {file: {} for file in checkpoint.readers}

        @lru_cache(maxsize=1)  # many layers may be rows of one tensor
        def read(file: Path, key: str) -> Tensor:
            return checkpoint.readers[file].read(key)

        def weight_of(component: str, path: str) -> Tensor:
            place = checkpoint.components[component][f"{path}.weight"]
            return place.of(*(read(place.file, key) for key in place.keys))

        reports = [
            _plan(checkpoint, models, source, strength, strict, weight_of, terms)
            for source, strength in sources
        ]
        text = _metadata(reports)

        def write(file: Path, to: Path) -> None:
            keys = _write(checkpoint.readers[file], to, terms[file], text, chosen, progress)
            moved.update((file, key) for key in keys)

        changed = [file for file in terms if terms[file] or chosen is not None]
        if checkpoint.is_folder:
            _copy_folder(checkpoint.source, out, changed, write)
        else:
            write(checkpoint.source, out)
    written = [out / file.relative_to(checkpoint.source) if checkpoint.is_folder else out for file in changed]
    return BakeReport(
        base=str(checkpoint.source),
        adapters=tuple(reports),
        tensors=len(moved),
        unmoved=sum(len(keys) for keys in terms.values()) - len(moved),
        path=str(out),
        size=sum(path.stat().st_size for path in written),
    )


def _without_tokens(adapter: Adapter) -> Adapter:
    """The adapter without the tokens that it brings along, which need a tokenizer of their own beside the weights."""
    left = [
        Ignored(one.key, f"the token {one.token!r}, which is in no checkpoint") for one in adapter.embeddings
    ]
    return replace(adapter, embeddings=(), ignored=(*adapter.ignored, *left))


def _plan(
    checkpoint: Checkpoint,
    models: Mapping[str, nn.Module],
    source: str | os.PathLike[str],
    strength: float,
    strict: bool,
    weight_of: Callable[[str, str], Tensor],
    terms: dict[Path, Terms],
) -> tuple[LoadReport, float]:
    """Put what one adapter adds into `terms`."""
    plan = bind(_without_tokens(read_finite(source)), models, strict=strict)
    for component, deltas in plan.deltas.items():
        places = checkpoint.components[component]
        for path, delta in deltas.items():
            for parameter in ("weight", "bias"):
                part = delta.part(parameter)
                place = places.get(path) or places.get(
                    f"{path}.{parameter}"
                )  # the first is a bare parameter's
                if part is not None and place is None:
                    raise StateError(
                        f"`{component}.{path}` has no {parameter} in {checkpoint.source} to add to."
                    )
                if part is not None and place is not None:
                    term = _Term(place, part, strength, partial(weight_of, component))
                    for key in place.keys:
                        terms[place.file].setdefault(key, []).append(term)
    return plan.report, strength


def _write(
    reader: Reader,
    to: Path,
    terms: Terms,
    text: Mapping[str, str],
    dtype: torch.dtype | None,
    progress: Progress,
) -> set[str]:
    """Write one file anew, and return the keys whose numbers are others. The bar counts tensors as they are written."""
    outline = reader.outline
    outlines = {key: _cast(tensor, dtype) for key, tensor in outline.tensors.items()}
    steps = iter(progress(list(outlines), to.name))
    moved: set[str] = set()

    def produce(key: str) -> Tensor:
        next(steps, None)
        tensor = reader.read(key)
        if key not in terms:
            return _cast(tensor, dtype)
        # Another dtype is rounded to from the sum in float32, and not from the sum in the checkpoint's own.
        tensor = tensor if dtype is None else tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        was_finite, was = is_finite(tensor), _cast(tensor.clone(), dtype)
        made = _cast(_with_terms(key, tensor, terms[key], reader), dtype)
        if not torch.equal(made, was):
            moved.add(key)
        if was_finite and not is_finite(made):
            raise NotFiniteError(
                f"`{key}` would hold a NaN or an infinity in {made.dtype}, expected finite numbers. Lower the "
                "strengths, or write another dtype (`--dtype`)."
            )
        return made

    stream_safetensors(to, outlines, produce, {**outline.metadata, **text})
    next(steps, None)
    return moved


def _with_terms(key: str, tensor: Tensor, terms: Sequence[_Term], reader: Reader) -> Tensor:
    """Return a tensor with deltas added, all that are for one place in one rounding."""
    by_place: dict[Place, list[_Term]] = {}
    for term in terms:
        by_place.setdefault(term.place, []).append(term)
    for place, found in by_place.items():
        deltas = [(term.delta.completed(term.weight_of), term.strength) for term in found]
        tensors = [tensor if other == key else reader.read(other) for other in place.keys]
        place.put(tensors, fused_parameter(place.of(*tensors).clone(), deltas))
    return tensor


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _copy_folder(
    source: Path, out: Path, changed: Sequence[Path], write: Callable[[Path, Path], None]
) -> None:
    """Make the new folder under another name, and give it its own when all is there."""
    if not out.parent.is_dir():
        raise FileError(f"{out}: there is no folder {out.parent}. Make it first.")
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        left_out = {file.resolve() for file in changed}

        def ignore(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if Path(folder, name).resolve() in left_out]

        shutil.copytree(source, draft, ignore=ignore)
        for file in changed:
            write(file, draft / file.relative_to(source))
        draft.replace(out)
    except OSError as error:
        why = error.args[0][0][-1] if isinstance(error, shutil.Error) else error  # of many files, the first
        raise FileError(f"{out}: cannot be written: {why}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _metadata(reports: Sequence[tuple[LoadReport, float]]) -> dict[str, str]:
    baked = [{"file": Path(report.source).name, "strength": strength} for report, strength in reports]
    return {BAKED_KEY: json.dumps(baked)}

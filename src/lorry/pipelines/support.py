"""Whether an adapter file fits a model, from its header alone and before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from lorry.adapters import Adapter
from lorry.binding import LoadReport, base_of_models, bind, report_on, titles_of_adapter
from lorry.dialects import read_adapter
from lorry.errors import LorryError, StateError
from lorry.files import TensorFile, read_adapter_file
from lorry.pipelines.architectures import skeleton
from lorry.pipelines.components import components_of
from lorry.pipelines.tokens import tokenizers_of

Model = str | os.PathLike[str] | nn.Module | object
"""A pipeline, one of its models, the name of a known base, or the folder of a diffusers pipeline."""


@final
@dataclass(frozen=True, slots=True)
class Support:
    """What loading a file into a model would do. It is true where the file can be loaded whole."""

    source: str
    report: LoadReport | None
    """What becomes of every key; None where the file cannot be read."""
    problem: LorryError | None
    """Why the file is refused; None where it can be loaded."""
    made_for: str | None
    """The base model that the file was made for, as far as its names and shapes tell."""
    model_is: str | None
    """The base model that the model is, likewise."""

    def __bool__(self) -> bool:
        return self.problem is None

    def as_dict(self) -> dict[str, Any]:
        """The answer in types that JSON has."""
        report = self.report
        counts = (
            {}
            if report is None
            else {
                "key_count": report.key_count,
                "applied": report.applied,
                "components": {part.component: part.keys for part in report.components},
                "ignored": {item.key: item.reason for item in report.ignored},
                "unknown": list(report.unknown),
                "mismatched": [str(mismatch) for mismatch in report.mismatched],
            }
        )
        problem = None if self.problem is None else str(self.problem).splitlines()[0]
        return {
            "source": self.source,
            "supported": bool(self),
            "made_for": self.made_for,
            "model_is": self.model_is,
            "problem": problem,
            **counts,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "can be loaded whole" if self else "cannot be loaded as it is"
        if self.made_for or self.model_is:
            yield f"made for {self.made_for or 'a base that its layers do not tell'}, the model is " + (
                self.model_is or "none that its layers tell"
            )
        if self.report is not None:
            yield str(self.report)


def is_supported(file: str | os.PathLike[str] | Mapping[str, Tensor], model: Model) -> Support:
    """Say whether an adapter can be loaded into a model, and what would become of every key.

    No weight of a safetensors file is read, and the model is not changed. So a layer without a place counts as unknown
    here, which `load_lora_weights` ignores where all of its numbers are zeros.

    Args:
        file: a file, a folder, the id of a repository of the Hub, or a state dict.
        model: a pipeline, one of its models, the name of a known base model (`"sdxl"`), or the folder of a diffusers
            pipeline, of which the configurations alone are read.

    Returns:
        The answer, true or false, with the load report. Whatever is wrong with the file is its `problem`.

    Raises:
        StateError: `model` is none of these.
    """
    models = _models(model)
    base = base_of_models(models)
    model_is = None if base is None else base.title
    source = "a state dict" if isinstance(file, Mapping) else os.fspath(file)
    try:
        adapter = _read(file)
    except LorryError as problem:
        return Support(source, None, problem, None, model_is)
    problem = None
    tokenizers = _tokenizers(model, models)
    try:
        bind(adapter, models, tokenizers=tokenizers)
    except LorryError as error:
        problem = error
    report = _report(adapter, models, tokenizers)
    return Support(adapter.source, report, problem, titles_of_adapter(adapter), model_is)


def _tokenizers(model: Model, models: Mapping[str, nn.Module | None]) -> Collection[str]:
    """The text encoders that can learn a token: of a base model that is only named, all of them."""
    if isinstance(model, str | os.PathLike):
        return [name for name in models if name.startswith("text_encoder")]
    return [] if isinstance(model, nn.Module) else tokenizers_of(model)


def _report(
    adapter: Adapter, models: Mapping[str, nn.Module | None], tokenizers: Collection[str]
) -> LoadReport | None:
    try:
        return report_on(adapter, models, tokenizers)
    except LorryError:  # the file contradicts itself, which is the problem already
        return None


def _read(file: str | os.PathLike[str] | Mapping[str, Tensor]) -> Adapter:
    if isinstance(file, Mapping):
        return read_adapter(TensorFile(file))
    return read_adapter(read_adapter_file(file, header_only=True))


def _models(model: Model) -> Mapping[str, nn.Module | None]:
    if isinstance(model, str | os.PathLike):
        return skeleton(model)
    if isinstance(model, nn.Module):
        name = type(model).__name__
        return {
            "unet" if name.startswith("UNet") else "text_encoder" if "Text" in name else "transformer": model
        }
    found = components_of(model) if hasattr(model, "__dict__") else {}
    if not any(found.values()):
        raise StateError(
            f"{type(model).__name__} has no model that adapters are for: expected a pipeline, a model, a folder, or "
            "the name of a base model."
        )
    return found

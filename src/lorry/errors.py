"""Every exception that lorry raises on purpose, in one tree.

    LorryError
    ├── FileError                 the bytes cannot be had or cannot be read
    │   ├── AdapterNotFoundError      no such file, folder, repository or weight name
    │   └── BrokenFileError           not a safetensors file, lying header, pickle with code in it
    ├── FormatError               the names in the file are not understood
    │   ├── UnknownDialectError       no dialect claims the file
    │   └── UnsupportedAdapterError   recognised, and not supported: says what it is
    ├── BindingError              the adapter does not fit the model
    │   ├── NothingAppliedError       not one tensor of the file has a place in the model
    │   ├── UnknownTargetError        the file names modules that the model does not have
    │   ├── ShapeMismatchError        a delta has another shape than the weight it is for
    │   └── NotFiniteError            a tensor of the adapter holds a NaN or an infinity
    ├── StateError                the request does not fit the adapters' present state
    │   ├── UnknownAdapterError       no adapter of that name is loaded
    │   ├── DuplicateAdapterError     an adapter of that name is loaded already
    │   └── FuseError                 fusing or unfusing is not possible as asked
    ├── PromptError               what a prompt, or a picture's parameters, says of adapters is not understood
    ├── TrainingError             a training cannot start or go on
    │   ├── SettingsError             a setting is unknown, of a wrong kind, or does not fit the others
    │   ├── DataError                 the pictures or captions cannot be used
    │   └── CheckpointError           a checkpoint does not fit the run that is to go on from it
    └── MissingPackageError       a package of one of lorry's extras is not installed

`FormatError`, `BindingError`, `StateError`, `PromptError` and `TrainingError` are `ValueError`s too,
`AdapterNotFoundError` is an `OSError` too and `MissingPackageError` an `ImportError`, because that is what code written
for others catches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LorryError(Exception):
    """The base of every error that lorry raises on purpose."""


class FileError(LorryError):
    """The bytes of an adapter cannot be had or cannot be read."""


class AdapterNotFoundError(FileError, OSError):
    """There is no such file, folder, repository or weight name."""


class BrokenFileError(FileError, ValueError):
    """The file is there and is not what its name says."""


class FormatError(LorryError, ValueError):
    """The names in a file are not understood."""


class UnknownDialectError(FormatError):
    """No dialect claims the file."""


class UnsupportedAdapterError(FormatError):
    """The file is recognised, and lorry cannot apply it."""


class BindingError(LorryError, ValueError):
    """An adapter does not fit the model it was meant for."""


class NothingAppliedError(BindingError):
    """Not one tensor of the file has a place in the model."""


class UnknownTargetError(BindingError):
    """The file names modules that the model does not have."""


class ShapeMismatchError(BindingError):
    """A delta has another shape than the weight it is for."""


class NotFiniteError(BindingError):
    """A tensor of the adapter holds a NaN or an infinity."""


class StateError(LorryError, ValueError):
    """A request does not fit the present state of the adapters on a model."""


class UnknownAdapterError(StateError):
    """No adapter of that name is loaded."""


class DuplicateAdapterError(StateError):
    """An adapter of that name is loaded already."""


class FuseError(StateError):
    """Fusing or unfusing is not possible as asked."""


class PromptError(LorryError, ValueError):
    """What a prompt, or a picture's parameters, says of adapters is not understood."""


class TrainingError(LorryError, ValueError):
    """A training cannot start or go on."""


class SettingsError(TrainingError):
    """A setting is unknown, of a wrong kind, or does not fit the others."""


class DataError(TrainingError):
    """The pictures or captions of a training cannot be used."""


class CheckpointError(TrainingError):
    """A checkpoint does not fit the run that is to go on from it."""


class MissingPackageError(LorryError, ImportError):
    """A package of one of lorry's extras is not installed."""


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return `" Did you mean 'x'?"` for the known word nearest to `word`, or an empty string.

    Args:
        word: what was asked for.
        known: what there is.
        alike: how near it must be, from 0 (whatever) to 1 (the same).
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=alike)
    return f" Did you mean {near[0]!r}?" if near else ""


def some(words: Iterable[str], limit: int = 5) -> str:
    """Return the first `limit` words for a message, and how many more there are."""
    listed = list(words)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")

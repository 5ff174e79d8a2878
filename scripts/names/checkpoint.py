"""What is typed of an original checkpoint: its modules' names, once a block, and which public code converts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """One architecture: the class of the live model, and the names that its original checkpoint has.

    In names a `*` stands for a block's number. What is typed is checked by what comes out: every name must land on a
    module of the live model, and every module of the model must be reached.
    """

    model: str
    """The class, in diffusers."""
    names: str = ""
    """Of the original's modules."""
    convert: str = ""
    """The function that converts them, of `diffusers.loaders.single_file_utils`, or of `lora_conversion_utils`."""
    lora: bool = False
    """Whether that function converts the factors of LoRAs."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the class's own defaults, which are those of a published checkpoint."""
    blocks: int = 2
    """How many blocks of each kind the config asks for."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of modules that the conversion cuts at numbers of its own."""
    bare: str = ""
    """Of the original's parameters that are no module's weight or bias, where the live model has them."""
    extra: str = ""
    """Parameters that are no module's weight, and that the conversion asks for."""
    same: str = ""
    """A pattern of live modules that the original calls by the same name, or has nothing for."""
    typed: str = ""
    """Rows of the table, `original -> live + live`, where there is no conversion code in an installed package."""
    spelt: str = ""
    """Rows as `typed` has them, of other spellings, which are read too."""
    without: Mapping[str, str] = field(default_factory=dict)
    """By an option of the live model's config, rows as `typed` has them that hold where it is off."""
    older: str = ""
    """Names of an older form of the checkpoint, which the same function converts; they are read too."""
    older_root: str = ""
    """What stands before all of those, and is a container to a file."""
    older_has: str = ""
    """A module of live models that are of that form, for which those names are written."""
    also: Callable[[str], str] | None = None
    """Gives another spelling of a name, which is read too."""
    writes_also: bool = False
    """Whether that spelling is the one that is written."""
    lacks: str = ""
    """Names that another model has, whose names its original's all are: a checkpoint that has one is of the other."""
    like: str = ""
    """The class of another model, of which this one is a variant that its original's names do not tell from it."""
    needs: str = ""
    """Names that are the same in the live model, and without which no checkpoint is of this model: where those that
    differ are few, or are another model's in diffusers."""
    source: str = ""
    """Where the typed rows are from."""

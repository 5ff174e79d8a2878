"""Packages that only training needs, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from lorry.errors import MissingPackageError


def needed(module: str, what: str, package: str | None = None) -> Any:
    """Import a package that training needs.

    Args:
        module: to import.
        what: needs it.
        package: that has it; None where it is of the extra `train`.

    Raises:
        MissingPackageError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = package or "'lorry[train]'"
        raise MissingPackageError(
            f"{what} needs the package {package or module}: `pip install {install}`. ({error})"
        ) from error

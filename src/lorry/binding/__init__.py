"""Decide which delta lands on which module of a live model, or say why not."""

from lorry.binding.bases import (
    BASES,
    Base,
    base_of_adapter,
    base_of_models,
    find_base_called,
    is_told,
    titles_of_adapter,
)
from lorry.binding.index import ModuleIndex
from lorry.binding.places import find_idle
from lorry.binding.plan import Plan, bind, report_on
from lorry.binding.renaming import in_names_of_model, in_original_names, join_exactly
from lorry.binding.report import ComponentReport, LoadReport, Mismatch, size_of
from lorry.binding.targets import (
    INPUTS,
    BareParameter,
    bare_names,
    bare_parameters,
    carriers,
    modules_at,
    named_modules,
    weight_shape,
)

__all__ = [
    "BASES",
    "BareParameter",
    "Base",
    "ComponentReport",
    "INPUTS",
    "LoadReport",
    "Mismatch",
    "ModuleIndex",
    "Plan",
    "bare_names",
    "bare_parameters",
    "base_of_adapter",
    "base_of_models",
    "bind",
    "find_idle",
    "carriers",
    "find_base_called",
    "in_names_of_model",
    "in_original_names",
    "is_told",
    "join_exactly",
    "modules_at",
    "named_modules",
    "report_on",
    "size_of",
    "titles_of_adapter",
    "weight_shape",
]

"""Decide which delta lands on which module of a live model, or say why not."""

from lorry.binding.index import ModuleIndex
from lorry.binding.plan import Plan, bind
from lorry.binding.report import ComponentReport, LoadReport, Mismatch, size_of
from lorry.binding.targets import weight_shape

__all__ = [
    "ComponentReport",
    "LoadReport",
    "Mismatch",
    "ModuleIndex",
    "Plan",
    "bind",
    "size_of",
    "weight_shape",
]

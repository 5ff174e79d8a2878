"""Whole jobs on files, each given back as a value that prints."""

from lorry.workflows.inspect import FileReport, PartReport, inspect_file

__all__ = ["FileReport", "PartReport", "inspect_file"]

"""`lorry inspect`."""

from __future__ import annotations

import json

from lorry.cli.console import tell, tell_error
from lorry.cli.options import find_adapter
from lorry.workflows import inspect_file


def inspect_and_print(file: str, *, as_json: bool) -> bool:
    """Print what a file holds, and return whether lorry can apply it."""
    report = inspect_file(find_adapter(file))
    tell(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if as_json else report)
    if report.problem is not None and not as_json:
        tell_error(report.problem)
    return report.problem is None

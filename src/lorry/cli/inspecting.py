"""`lorry inspect`."""

from __future__ import annotations

import json

from lorry.cli.console import tell, tell_error
from lorry.cli.options import find_adapter
from lorry.cli.workbench.further import Further
from lorry.workflows import inspect_file


def inspect_and_print(file: str, further: Further, *, as_json: bool) -> bool:
    """Print what a file holds, with the further reports that are asked for; return whether lorry can apply it."""
    source = find_adapter(file)
    report = inspect_file(source)
    more = {} if report.problem else further.reports(source)
    if as_json:
        answer = report.as_dict() | {name: found.as_dict() for name, found in more.items()}
        tell(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        for found in (report, *more.values()):
            tell(found)
    if report.problem is not None and not as_json:
        tell_error(report.problem)
    return report.problem is None

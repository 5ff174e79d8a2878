"""`lorry inspect`."""

from __future__ import annotations

import json
from dataclasses import replace

from lorry.cli.console import tell, tell_error
from lorry.cli.options import find_adapter, find_base
from lorry.cli.workbench.further import Further
from lorry.errors import LorryError
from lorry.workflows import inspect_file


def inspect_and_print(file: str, further: Further, model: str | None = None, *, as_json: bool) -> bool:
    """Print what a file holds, with the further reports that are asked for.

    Of what lorry cannot apply these are the hashes alone, which need no more than the file.
    Returns whether lorry can apply it, to `model` where one is given.
    """
    source = find_adapter(file)
    report = inspect_file(source)
    more = (replace(further, weights=False, plot=None) if report.problem else further).reports(source)
    support = None
    if model is not None:
        from lorry.pipelines.support import is_supported

        support = is_supported(source, find_base(model))
    problem: LorryError | None = report.problem or (None if support is None else support.problem)
    if as_json:
        answer = report.as_dict() | {name: found.as_dict() for name, found in more.items()}
        asked = {} if support is None else {"model": model, "support": support.as_dict()}
        tell(json.dumps(answer | asked, indent=2, ensure_ascii=False))
        return problem is None
    for found in (report, *more.values()):
        tell(found)
    if support is not None:
        tell(f"{model}: {support}")
    if problem is not None:
        tell_error(problem, "" if support is None else f"\n{support.report}")
    return problem is None

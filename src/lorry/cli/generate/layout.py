"""Which picture of an order stands where in a grid."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from lorry.cli.generate.order import AXES, Job
from lorry.cli.grid import Panel


def panels_of(jobs: Sequence[Job], pictures: Sequence[Image]) -> list[Panel]:
    """Lay pictures out: the last axis that varies runs over the columns, the one before over the rows.

    Where more than two vary, the others make a panel of each combination.
    """
    values = {axis: list(dict.fromkeys(job.labels[axis] for job in jobs)) for axis in AXES}
    values["strength"].sort(key=lambda label: float(label.rpartition(" ")[2] or 0))
    varying = [axis for axis in AXES if len(values[axis]) > 1] or [AXES[0]]
    across, down, others = varying[-1], varying[-2] if len(varying) > 1 else None, varying[:-2]
    rows = values[down] if down is not None else [""]
    cells: dict[tuple[str, ...], dict[tuple[int, int], Image | str]] = {}
    for job, picture in zip(jobs, pictures, strict=True):
        place = (
            rows.index(job.labels[down] if down is not None else ""),
            values[across].index(job.labels[across]),
        )
        cells.setdefault(tuple(job.labels[axis] for axis in others), {})[place] = picture
    return [Panel(", ".join(title), values[across], rows, found) for title, found in cells.items()]

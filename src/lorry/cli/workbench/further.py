"""What `lorry inspect` says on request, beyond the header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lorry.cli.progress import bar


@final
@dataclass(frozen=True, slots=True)
class Further:
    """What else was asked for."""

    weights: bool = False
    hashes: bool = False
    plot: Path | None = None

    def reports(self, source: str) -> dict[str, Any]:
        """Return the further reports by name, each with `as_dict`, and draw the picture."""
        found: dict[str, Any] = {}
        if self.weights or self.plot is not None:
            from lorry.workflows.measure import measure_file

            measured = measure_file(source, progress=bar)
            if self.plot is not None:
                from lorry.cli.plots.weights import plot_weights

                plot_weights(measured, self.plot)
            if self.weights:
                found["weights"] = measured
        if self.hashes:
            from lorry.files import find_weights, hash_file

            found["hashes"] = hash_file(find_weights(source))
        return found

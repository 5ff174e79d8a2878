"""Where two adapters overlap."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from lorry.cli.plots.figure import HEAT, figure
from lorry.cli.plots.heat import draw_heat
from lorry.errors import StateError
from lorry.workflows.compare import CompareReport, Comparison


def plot_comparison(report: CompareReport, path: Path) -> None:
    """Draw cosine and shared energy by block and kind of layer.

    Raises:
        StateError: they have no layer in common, or matplotlib is not installed.
        FileError: the file cannot be written.
    """
    if report.whole is None:
        raise StateError("The two adapters change no layer in common: there is nothing to draw.")
    rows = [block.name for block in report.blocks]
    columns = list(dict.fromkeys(sorted(layer.kind for layer in report.layers)))
    cosines, shares = _cells(report.layers)
    one, two = (Path(source).stem for source in report.sources)
    with figure(path, 1, 2, 11, 2 + 0.35 * len(rows)) as (drawn, axes):
        left, right = axes[0]
        draw_heat(drawn, left, rows, columns, cosines, shown="{:+.2f}", cmap="RdBu", vmin=-0.5, vmax=0.5)
        left.set_title(f"{one} and {two}: cosine (blue: alike, red: opposed)")
        draw_heat(drawn, right, rows, columns, shares, shown="{:.0%}", cmap=HEAT, vmin=0, vmax=1)
        right.set_title("energy on the same inputs and outputs")
        right.set_yticklabels([])


def _cells(
    layers: tuple[Comparison, ...],
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """Return cosines and shares by (block, kind), layers weighted by their energy."""
    found: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for layer in layers:
        found[layer.block, layer.kind].append(layer)
    cosines, shares = {}, {}
    for cell, inside in found.items():
        one, two = (sum(layer.norms[n] ** 2 for layer in inside) for n in (0, 1))
        inner = sum(layer.cosine * layer.norms[0] * layer.norms[1] for layer in inside)
        energy = sum(layer.norms[0] ** 2 + layer.norms[1] ** 2 for layer in inside) or 1.0
        cosines[cell] = inner / ((one * two) ** 0.5 or 1.0)
        shares[cell] = (
            sum(layer.shared * (layer.norms[0] ** 2 + layer.norms[1] ** 2) for layer in inside) / energy
        )
    return cosines, shares

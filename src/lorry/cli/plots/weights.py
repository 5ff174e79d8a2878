"""What an adapter's weights say."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from lorry.cli.plots.figure import COLOURS, HEAT, figure
from lorry.cli.plots.heat import draw_heat
from lorry.errors import StateError
from lorry.workflows.measure import WeightsReport


def plot_weights(report: WeightsReport, path: Path) -> None:
    """Draw strength by block and kind of layer, the spectra, what each rank keeps, and rank and alpha.

    Raises:
        StateError: there is no layer to draw, or matplotlib is not installed.
        FileError: the file cannot be written.
    """
    if not report.layers:
        raise StateError(f"{report.source}: no layer has a matrix of its own to draw.")
    with figure(path, 2, 2, 12, 8) as (drawn, axes):
        drawn.suptitle(Path(report.source).name, fontweight="bold")
        _strength(report, drawn, axes[0, 0])
        _spectra(report, axes[0, 1])
        _energy(report, axes[1, 0])
        _ranks(report, axes[1, 1])


def _strength(report: WeightsReport, drawn: Any, axis: Any) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for layer in report.layers:
        found[layer.block, layer.kind].append(layer.strength**2)
    cells = {cell: 1e3 * (sum(squares) / len(squares)) ** 0.5 for cell, squares in found.items()}
    rows = [block.name for block in report.blocks]
    columns = sorted({layer.kind for layer in report.layers})
    draw_heat(drawn, axis, rows, columns, cells, shown="{:.2g}", cmap=HEAT)
    axis.set_title("strength: root mean square of the delta, thousandths")


def _spectra(report: WeightsReport, axis: Any) -> None:
    kinds = sorted({layer.kind for layer in report.layers})
    for layer in report.layers:
        values = [value for value in layer.spectrum if value > 1e-7 * layer.spectrum[0]]
        colour = COLOURS[kinds.index(layer.kind) % len(COLOURS)]
        axis.plot(range(1, len(values) + 1), values, color=colour, alpha=0.35, lw=0.8)
    for number, kind in enumerate(kinds):
        axis.plot([], [], color=COLOURS[number % len(COLOURS)], label=kind)
    axis.set(yscale="log", xlabel="number", ylabel="singular value", title="spectra, a line for each layer")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)


def _energy(report: WeightsReport, axis: Any) -> None:
    longest = max(len(layer.energy) for layer in report.layers)
    kept = [
        sorted(layer.energy[min(n, len(layer.energy) - 1)] for layer in report.layers) for n in range(longest)
    ]
    numbers, count = range(1, longest + 1), len(report.layers)
    axis.fill_between(
        numbers, [k[0] for k in kept], [k[-1] for k in kept], color=COLOURS[0], alpha=0.15, label="all layers"
    )
    axis.fill_between(
        numbers,
        [k[count // 4] for k in kept],
        [k[(3 * count) // 4] for k in kept],
        color=COLOURS[0],
        alpha=0.3,
        label="the middle half",
    )
    axis.plot(numbers, [k[count // 2] for k in kept], color=COLOURS[0], label="median")
    axis.set(xlabel="rank", ylabel="share of energy kept", ylim=(0, 1.02), title="what each rank keeps")
    axis.legend(frameon=False, loc="lower right")
    axis.grid(alpha=0.3)


def _ranks(report: WeightsReport, axis: Any) -> None:
    numbers = range(len(report.layers))
    axis.plot(
        numbers,
        [layer.effective_rank for layer in report.layers],
        ".",
        color=COLOURS[1],
        label="effective rank",
    )
    ranks = [float("nan") if layer.rank is None else layer.rank for layer in report.layers]
    alphas = [float("nan") if layer.alpha is None else layer.alpha for layer in report.layers]
    axis.plot(numbers, ranks, "_", color=COLOURS[0], label="rank")
    axis.plot(numbers, alphas, "x", color=COLOURS[3], ms=4, label="alpha")
    axis.set(xlabel="layer, in the order of their names", title="rank, effective rank and alpha")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)

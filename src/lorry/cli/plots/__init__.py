"""Pictures of numbers, drawn with matplotlib (the extra `plot`)."""

from lorry.cli.plots.trade_off import plot_trade_off

__all__ = ["plot_trade_off"]

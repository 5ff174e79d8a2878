"""`lorry generate`."""

from lorry.cli.generate.command import generate_and_print
from lorry.cli.generate.order import Order

__all__ = ["Order", "generate_and_print"]

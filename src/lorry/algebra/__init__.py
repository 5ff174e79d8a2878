"""A delta from its parts: one family a file, each with its formula once."""

from lorry.algebra.base import Delta, LowRank
from lorry.algebra.lora import LoraDelta

__all__ = ["Delta", "LoraDelta", "LowRank"]

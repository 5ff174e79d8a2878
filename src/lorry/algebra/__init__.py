"""A delta from its parts: one family a file, each with its formula once."""

from lorry.algebra._channels import PaddedDelta, pad_channels
from lorry.algebra._rows import RowsDelta, cut_rows
from lorry.algebra._shapes import UNKNOWN, Span, Spans, count_rows, same_numbers
from lorry.algebra.base import Delta, LowRank
from lorry.algebra.boft import BoftDelta
from lorry.algebra.bora import BoraDelta
from lorry.algebra.dora import DoraDelta
from lorry.algebra.full import FullDelta
from lorry.algebra.glora import GloraDelta
from lorry.algebra.hra import HraDelta
from lorry.algebra.ia3 import Ia3Delta
from lorry.algebra.loha import LohaDelta
from lorry.algebra.lokr import LokrDelta
from lorry.algebra.lora import LoraDelta
from lorry.algebra.lora_xs import LoraXsDelta
from lorry.algebra.moved import START, MovedDelta
from lorry.algebra.oft import OftDelta
from lorry.algebra.parts import PartsDelta
from lorry.algebra.replacing import ReplaceDelta
from lorry.algebra.shared import Share, SharedDelta
from lorry.algebra.sparse import SparseDelta
from lorry.algebra.stacked import StackedDelta
from lorry.algebra.vera import VeraDelta

__all__ = [
    "START",
    "UNKNOWN",
    "BoftDelta",
    "BoraDelta",
    "Delta",
    "DoraDelta",
    "FullDelta",
    "GloraDelta",
    "HraDelta",
    "Ia3Delta",
    "LohaDelta",
    "LokrDelta",
    "LoraDelta",
    "LoraXsDelta",
    "LowRank",
    "MovedDelta",
    "OftDelta",
    "PaddedDelta",
    "PartsDelta",
    "SparseDelta",
    "VeraDelta",
    "ReplaceDelta",
    "RowsDelta",
    "Share",
    "SharedDelta",
    "Span",
    "Spans",
    "StackedDelta",
    "count_rows",
    "cut_rows",
    "pad_channels",
    "same_numbers",
]

"""All dialects, in order, and the one that a file is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorry.adapters import Adapter
from lorry.dialects._known import Watched, find_known, remember
from lorry.dialects._refusals import find_refusal
from lorry.dialects.attention_processors import AttentionProcessors
from lorry.dialects.base import Dialect
from lorry.dialects.cloneofsimo import Cloneofsimo
from lorry.dialects.cloneofsimo_pt import CloneofsimoPt
from lorry.dialects.comfyui import Comfyui
from lorry.dialects.diffsynth_h3 import DiffsynthH3
from lorry.dialects.diffusers import Diffusers
from lorry.dialects.dotted_kohya import DottedKohya
from lorry.dialects.kohya import Kohya
from lorry.dialects.lora_layers import LoraLayers
from lorry.dialects.lycoris import Lycoris
from lorry.dialects.omi import Omi
from lorry.dialects.onetrainer import Onetrainer
from lorry.dialects.peft import Peft
from lorry.dialects.sat import Sat
from lorry.dialects.stable_audio import StableAudio
from lorry.dialects.xlabs import Xlabs
from lorry.errors import FormatError, UnknownDialectError, UnsupportedAdapterError, did_you_mean, some
from lorry.files import TensorFile

DIALECTS: Sequence[Dialect] = (
    Lycoris(),
    Onetrainer(),
    Kohya(),
    Peft(),
    Xlabs(),
    DiffsynthH3(),
    AttentionProcessors(),
    Comfyui(),
    LoraLayers(),
    Omi(),
    DottedKohya(),
    Diffusers(),
    Cloneofsimo(),
    CloneofsimoPt(),
    Sat(),
    StableAudio(),
)
"""The order is that of a listing; which of two claims wins, a dialect's `before` says."""


def find_dialect(file: TensorFile) -> Dialect | None:
    """Return the dialect of a file, or None where no dialect knows it.

    A file that lorry recognises and cannot apply (an IP-Adapter, a whole checkpoint) belongs to none, and so does one
    without tensors.

    Raises:
        FormatError: two dialects claim it, and neither comes before the other.
    """
    if not file.tensors or find_refusal(file):
        return None
    claims: dict[str, Dialect] = {}
    for dialect in DIALECTS:
        beaten = any(dialect.name in claim.before for claim in claims.values())
        if not beaten and dialect.claims(file):
            claims[dialect.name] = dialect
    return choose_claim(claims, file.source)


def choose_claim(claims: Mapping[str, Dialect], source: str) -> Dialect | None:
    """Return the one dialect of `claims` that comes before all others there, or None where there are none.

    Raises:
        FormatError: there are several, and no one of them comes first.
    """
    first = [d for d in claims.values() if all(name == d.name or name in d.before for name in claims)]
    if len(claims) > 1 and len(first) != 1:
        raise FormatError(
            f"{source} looks like several dialects at once: {', '.join(claims)}. Please report this file."
        )
    return first[0] if first else None


def get_dialect(name: str) -> Dialect:
    """Return the dialect called `name`.

    Raises:
        UnknownDialectError: there is none.
    """
    known = {dialect.name: dialect for dialect in DIALECTS}
    if name not in known:
        written = ", ".join(dialect.name for dialect in DIALECTS if dialect.is_written)
        read_only = ", ".join(dialect.name for dialect in DIALECTS if not dialect.is_written)
        raise UnknownDialectError(
            f"There is no dialect {name!r}.{did_you_mean(name, known)} Written: {written}; read only: {read_only}."
        )
    return known[name]


def read_adapter(file: TensorFile) -> Adapter:
    """Return the adapter that a file holds, in whatever dialect it is; of a file that is still read, one that may be.

    Raises:
        UnsupportedAdapterError: the file is recognised, and lorry cannot apply it.
        UnknownDialectError: no dialect knows it.
        FormatError: it contradicts itself.
    """
    if file.spans is None:
        return _read(file)
    known = find_known(file)
    if known is not None:
        return known
    file = file.whole()
    text = Watched(file.metadata)
    adapter = replace(_read(replace(file, metadata=text)), metadata=file.metadata)
    remember(file, adapter, text)
    return adapter


def _read(file: TensorFile) -> Adapter:
    dialect = find_dialect(file)
    refusal = find_refusal(file) if dialect is None else None
    if refusal:
        raise UnsupportedAdapterError(f"{file.source} is {refusal}")
    if dialect is None:
        raise UnknownDialectError(_unknown(file))
    names = "diffusers" if dialect.block_names == "diffusers" else "original"
    return replace(dialect.read(file), block_names=names)


def _unknown(file: TensorFile) -> str:
    if not file.tensors:
        return f"{file.source} holds no tensors at all."
    shown = some([f"`{key}` {tuple(file.tensors[key].shape)}" for key in sorted(file.tensors)])
    metadata = f" Its metadata has {some(sorted(file.metadata))}." if file.metadata else ""
    plain = all(key.endswith((".weight", ".bias")) for key in file.tensors)
    guess = (
        "These are the names of a model's own weights. Is it a whole model, and no adapter?"
        if plain
        else "Is it a LoRA file? If so, please report these keys."
    )
    return (
        f"{file.source} is in no dialect that lorry knows ({', '.join(dialect.name for dialect in DIALECTS)}). Its "
        f"{len(file.tensors)} keys begin with {shown}.{metadata} {guess}"
    )

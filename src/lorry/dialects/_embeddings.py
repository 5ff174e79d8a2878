"""Textual inversions that stand in an adapter's file: tokens that were trained along with it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lorry.adapters import Embedding, Ignored
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile

BUNDLE = "bundle_emb."
KINDS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_2",  # or wherever the pipeline has its T5
    "emb_params": "text_encoder",
    "string_to_param.*": "text_encoder",
}
"""The last part of `bundle_emb.NAME.KIND`, and the text encoder that it is for. Source: Nerogar/OneTrainer,
`modules/modelSaver/mixin/LoRASaverMixin.py`; AUTOMATIC1111/stable-diffusion-webui,
`extensions-builtin/Lora/networks.py`."""
WRITTEN_KINDS = ("clip_l", "clip_g")
"""What a token that came under another name is written as."""
BOOKKEEPING = ("string_to_token.*", "name", "step", "sd_checkpoint", "sd_checkpoint_name")
"""What A1111 saves beside the vectors."""


def read_bundle(file: TensorFile, keys: Iterable[str]) -> tuple[list[Embedding], list[Ignored], list[str]]:
    """Return the embeddings under `keys`, all of which begin with `BUNDLE`, the keys to ignore, and the unknown ones.

    Raises:
        UnsupportedAdapterError: one is added to the text encoder's output.
        FormatError: one is no list of vectors.
    """
    found: list[Embedding] = []
    ignored: list[Ignored] = []
    unknown: list[str] = []
    for key in keys:
        name, kind = _split(key.removeprefix(BUNDLE))
        if kind in KINDS and name:
            found.append(read_embedding(file, key, name, KINDS[kind]))
        elif kind.endswith("_out"):
            raise UnsupportedAdapterError(
                f"{file.source}: `{key}` is added to what the text encoder answers for the token {name!r}, which lorry "
                "cannot do. Remove the key from the file to load the rest."
            )
        elif kind in BOOKKEEPING:
            ignored.append(Ignored(key, "bookkeeping of a textual inversion"))
        else:
            unknown.append(key)
    return found, ignored, unknown


def bundled(embeddings: Iterable[Embedding]) -> dict[str, Tensor]:
    """Return embeddings by the keys that they have in a file: those that they came with, where these say whose.

    Raises:
        UnsupportedAdapterError: one is for a text encoder that has no name there.
    """
    return {f"{BUNDLE}{one.token}.{_kind(one)}": one.vectors for one in embeddings}


def _kind(embedding: Embedding) -> str:
    name, kind = _split(embedding.key.removeprefix(BUNDLE))
    if name == embedding.token and KINDS.get(kind) == embedding.component:
        return kind
    found = {component: name for name, component in reversed(KINDS.items()) if name in WRITTEN_KINDS}
    if embedding.component not in found:
        raise UnsupportedAdapterError(
            f"the token {embedding.token!r} is for `{embedding.component}`, which has no name among bundled embeddings."
        )
    return found[embedding.component]


def _split(rest: str) -> tuple[str, str]:
    """Return a token's name, in which there may be dots, and what stands behind it."""
    for kind in (*KINDS, *BOOKKEEPING):
        if rest.endswith(f".{kind}"):
            return rest.removesuffix(f".{kind}"), kind
    name, _, kind = rest.rpartition(".")
    return name, kind


def read_embedding(file: TensorFile, key: str, token: str, component: str) -> Embedding:
    """Return the embedding under a key: one vector, or one for each row.

    Raises:
        FormatError: it is no list of vectors.
    """
    vectors: Tensor = file.tensors[key]
    if vectors.ndim == 1:
        vectors = vectors[None]
    if vectors.ndim != 2 or vectors.numel() == 0 or not vectors.is_floating_point():
        raise FormatError(
            f"{file.source}: `{key}`: expected vectors of floating-point numbers for the token {token!r}, got "
            f"{vectors.dtype} {tuple(vectors.shape)}."
        )
    return Embedding(token, component, vectors, key)

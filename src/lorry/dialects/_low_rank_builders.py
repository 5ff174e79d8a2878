"""Build the families of low-rank factors: LoRA, LoHa, LoKr and GLoRA."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lorry.algebra import GloraDelta, LohaDelta, LokrDelta, LoraDelta, SparseDelta, VeraDelta
from lorry.dialects._alphas import read_number
from lorry.dialects._parts import Built, LayerParts
from lorry.errors import FormatError, UnsupportedAdapterError

SPARSE = frozenset({"bias_indices", "bias_values", "bias_size"})
"""What LyCORIS calls a sparse difference of the weight."""


def build_lora(parts: LayerParts) -> Built:
    """Build a LoRA or LoCon."""
    down, up, mid = parts.tensors["down"], parts.tensors["up"], parts.tensors.get("mid")
    kernel = down if mid is None else mid
    alpha = parts.alpha(down.shape[0], kernel.shape[2:].numel() > 1)
    delta = LoraDelta(down, up, mid, alpha.value, alpha.rank_stabilised)
    return Built(_with_sparse(delta, parts) if SPARSE & parts.tensors.keys() else delta, alpha.source)


def build_embedding(parts: LayerParts) -> Built:
    """Build PEFT's LoRA of an `nn.Embedding`, whose factors make the transposed weight.

    Source: huggingface/peft, `tuners/lora/layer.py` (`Embedding.get_delta_weight`).

    Raises:
        UnsupportedAdapterError: it has a magnitude.
    """
    a, b = parts.tensors["embedding_A"], parts.tensors["embedding_B"]
    if "magnitude" in parts.tensors:
        raise UnsupportedAdapterError(
            f"`{parts.keys['magnitude']}`: a DoRA of an embedding, which lorry cannot apply. Train that layer without "
            "DoRA, or merge it into the text encoder with PEFT (`merge_and_unload`)."
        )
    if a.ndim != 2 or b.ndim != 2:
        raise FormatError(
            f"an embedding's LoRA of {tuple(a.shape)} and {tuple(b.shape)}: expected two matrices."
        )
    alpha = parts.alpha(a.shape[0])
    delta = LoraDelta(b.t(), a.t(), None, alpha.value, alpha.rank_stabilised, of_embedding=True)
    return Built(delta, alpha.source)


def build_mlx(parts: LayerParts) -> Built:
    """Build MLX's LoRA, which multiplies rows from the right.

    Source: ml-explore/mlx-examples, `flux/flux/lora.py`.
    """
    a, b = parts.tensors["mlx_a"], parts.tensors["mlx_b"]
    if a.ndim != 2 or b.ndim != 2:
        raise FormatError(f"MLX's LoRA of {tuple(a.shape)} and {tuple(b.shape)}: expected two matrices.")
    alpha = parts.alpha(a.shape[1])
    return Built(LoraDelta(a.t(), b.t(), None, alpha.value, alpha.rank_stabilised), alpha.source)


def _with_sparse(delta: LoraDelta, parts: LayerParts) -> SparseDelta:
    """Put the sparse difference of a LoRA that LyCORIS extracted beside it.

    The indices are of 16 bits, which a wide layer's do not fit into: those come out negative.
    """
    if not parts.tensors.keys() >= SPARSE:
        raise FormatError(f"a sparse difference has {', '.join(sorted(SPARSE))}, and one of them is missing.")
    rows, columns = delta.shape[0], torch.Size(delta.shape[1:]).numel()
    size = parts.tensors["bias_size"]
    if not size.is_meta and [int(n) & 0xFFFF for n in size.flatten()] != [rows & 0xFFFF, columns & 0xFFFF]:
        raise FormatError(f"a sparse difference of {size.tolist()} beside a LoRA of ({rows}, {columns}).")
    indices = parts.tensors["bias_indices"].to(torch.long, copy=True)
    return SparseDelta(delta, parts.tensors["bias_values"], indices)


def build_vera(parts: LayerParts) -> Built:
    """Build a VeRA, of a file that holds the matrices which its layers share.

    Source: huggingface/peft, `tuners/vera/config.py` (`save_projection`).
    """
    a, b = parts.tensors.get("vera_A"), parts.tensors.get("vera_B")
    if a is None or b is None:
        raise FormatError(
            "a VeRA whose file lacks the shared `vera_A` and `vera_B`, which only the trainer's random numbers could "
            "make again. Save it with `save_projection=True`."
        )
    return Built(VeraDelta(parts.tensors["vera_lambda_b"], parts.tensors["vera_lambda_d"], a, b))


def build_loha(parts: LayerParts) -> Built:
    """Build a LoHa. Its tensors do not tell a kernel from more inputs, but for those with cores."""
    w1_a, w1_b, w2_a, w2_b = (parts.tensors[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    delta = LohaDelta(w1_a, w1_b, w2_a, w2_b, parts.tensors.get("hada_t1"), parts.tensors.get("hada_t2"))
    alpha = parts.alpha(delta.rank, len(delta.shape) > 2 and max(delta.shape[2:]) > 1)
    return Built(replace(delta, alpha=alpha.value), alpha.source)


def build_lokr(parts: LayerParts) -> Built:
    """Build a LoKr. The alpha of one without a rank is kept and means nothing: trainers write what they like there."""
    names = ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")
    w1, w2, w1_a, w1_b, w2_a, w2_b, t2 = (parts.tensors.get(f"lokr_{name}") for name in names)
    delta = LokrDelta(w1, w2, w1_a, w1_b, w2_a, w2_b, t2)
    if delta.rank is None:
        if "alpha" in parts.tensors:
            return Built(replace(delta, alpha=read_number(parts.tensors["alpha"], parts.keys["alpha"])))
        scale = parts.rules.full_scale(parts.target)
        return Built(delta) if scale is None else Built(replace(delta, full_scale=scale), "metadata")
    alpha = parts.alpha(delta.rank, len(delta.shape) > 2 and max(delta.shape[2:]) > 1)
    return Built(replace(delta, alpha=alpha.value), alpha.source)


def build_glora(parts: LayerParts) -> Built:
    """Build a GLoRA, in whichever of the two layouts its shapes allow. A Tucker core is multiplied into `b2`.

    Source: KohakuBlueleaf/LyCORIS, `lycoris/kohya.py`, for the name of the option `rs_lora`.
    """
    a1, a2, b1, b2 = (parts.tensors[name] for name in ("a1", "a2", "b1", "b2"))
    if "bm" in parts.tensors:
        b2 = _with_core(b2, parts.tensors["bm"])
    is_old = bool(GloraDelta.find_layout(a1, a2, b1, b2))
    stabilised = str(parts.option("rs_lora")).lower() in ("true", "1", "yes")
    delta = GloraDelta(a1, a2, b1, b2, old_layout=is_old, rank_stabilised=stabilised)
    alpha = parts.alpha(delta.rank, len(delta.shape) > 2 and max(delta.shape[2:]) > 1)
    return Built(replace(delta, alpha=alpha.value), alpha.source)


def _with_core(down: Tensor, core: Tensor) -> Tensor:
    if core.ndim not in (3, 4, 5) or down.shape[2:].numel() != 1 or core.shape[1] != down.shape[0]:
        raise FormatError(f"the core `bm` {tuple(core.shape)} does not join `b2` {tuple(down.shape)}.")
    wide = torch.promote_types(down.dtype, torch.float32)
    return torch.einsum("pq...,qi->pi...", core.to(wide), down.flatten(1).to(wide))

"""Build the families that turn the base weight: OFT and BOFT, of LyCORIS, kohya, PEFT and OneTrainer; and HRA."""

from __future__ import annotations

from lorry.algebra import BoftDelta, HraDelta, OftDelta
from lorry.dialects._parts import Built, LayerParts

NEUMANN_TERMS = 5
"""What PEFT and OneTrainer use where no config says otherwise."""
COFT_EPS = 6e-5
"""PEFT's default."""
PEFT_PREFIX = "base_model.model."


def build_diag(parts: LayerParts) -> Built:
    """Build a Diag-OFT (blocks of 3 axes) or a BOFT (of 4), whose alpha is the constraint.

    An alpha of 0 means no constraint in LyCORIS's files, and in kohya's that nothing turns.

    Source: KohakuBlueleaf/LyCORIS, `lycoris/modules/diag_oft.py` and `boft.py`; kohya-ss/sd-scripts, `networks/oft.py`.
    """
    blocks, rescale = parts.tensors["oft_blocks"], parts.tensors.get("rescale")
    limit = parts.limit()
    if blocks.ndim == 4:
        return Built(BoftDelta(blocks, rescale, limit or None))
    is_kohya = parts.keys["oft_blocks"].startswith("oft_unet_")
    return Built(OftDelta(blocks, rescale, limit if is_kohya else limit or None))


def build_packed(parts: LayerParts) -> Built:
    """Build an OFT on the input side, of PEFT or OneTrainer.

    A file without PEFT's config and prefix is OneTrainer's or sd-scripts', which turn linear layers as PEFT does by
    default, and convolutions the other way.

    Source: huggingface/peft, `tuners/oft/layer.py`; Nerogar/OneTrainer at 23df383, `modules/module/LoRAModule.py`
    (`OFTModule.forward`); kohya-ss/sd-scripts, `networks/oft_v2.py`.
    """
    is_peft = parts.option("peft_type") is not None or parts.keys["oft_R"].startswith(PEFT_PREFIX)
    exact = parts.option("use_cayley_neumann") is False
    terms = None if exact else int(parts.number_option("num_cayley_neumann_terms", NEUMANN_TERMS))
    delta = OftDelta(
        parts.tensors["oft_R"],
        on_input=True,
        opposite=exact,
        neumann_terms=terms,
        scaled="scaled_oft" in parts.tensors,
        block_norm=parts.number_option("eps", COFT_EPS) if parts.option("coft") else None,
        back_on_kernels=not is_peft,
    )
    return Built(delta)


def build_butterfly(parts: LayerParts) -> Built:
    """Build a BOFT of PEFT.

    Source: huggingface/peft, `tuners/boft/layer.py`.
    """
    return Built(BoftDelta(parts.tensors["boft_R"], parts.tensors["boft_s"], on_input=True))


def build_reflections(parts: LayerParts) -> Built:
    """Build an HRA.

    Source: huggingface/peft, `tuners/hra/layer.py`.
    """
    return Built(HraDelta(parts.tensors["hra_u"], bool(parts.option("apply_GS"))))

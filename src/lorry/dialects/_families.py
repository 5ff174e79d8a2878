"""All families of deltas: which tensors a layer of each has, and who builds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import final

from lorry.dialects._direct_builders import (
    build_bias,
    build_full,
    build_norm,
    build_peft_vector,
    build_saved,
    build_saved_bias,
    build_vector,
)
from lorry.dialects._low_rank_builders import (
    SPARSE,
    build_embedding,
    build_glora,
    build_loha,
    build_lokr,
    build_lora,
    build_mlx,
    build_vera,
)
from lorry.dialects._parts import Built, LayerParts
from lorry.dialects._suffixes import SHARED, Role
from lorry.dialects._turning_builders import build_butterfly, build_diag, build_packed, build_reflections
from lorry.errors import FormatError

SCALE = frozenset({"alpha", "scale"})
BIASES = frozenset({"diff_b", "saved_bias"})
DIRECTION = SCALE | BIASES | {"dora_scale", "magnitude"}
"""What a family may have beside it that can be the direction of a DoRA."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Family:
    """A kind of layer."""

    name: str
    build: Callable[[LayerParts], Built]
    whole: tuple[frozenset[Role], ...]
    """The sets of tensors of which it needs one."""
    own: frozenset[Role]
    """The tensors that no other family has."""
    taken: frozenset[Role]
    """All that mean something in it: its own, and what it may have besides."""

    def is_whole(self, roles: Set[Role]) -> bool:
        """Whether a layer has all that it needs."""
        return any(needed <= roles for needed in self.whole)


def _family(
    name: str, build: Callable[[LayerParts], Built], needs: str, others: Iterable[Role] = ()
) -> Family:
    """Make a family; `needs` lists its tensors, with `|` between sets of them that do as well as each other."""
    whole = tuple(frozenset(one.split()) for one in needs.split("|"))
    own = frozenset().union(*whole)
    return Family(name, build, whole, own, own | frozenset(others))


_LOKR = "|".join(
    f"{one} {two}"
    for one, two in product(("lokr_w1", "lokr_w1_a lokr_w1_b"), ("lokr_w2", "lokr_w2_a lokr_w2_b"))
)

FAMILIES = (
    _family("LoRA", build_lora, "down up", DIRECTION | SPARSE | {"mid", "lora_bias", "reshape"}),
    _family("LoRA of an embedding", build_embedding, "embedding_A embedding_B", SCALE | {"magnitude"}),
    _family("LoRA of MLX", build_mlx, "mlx_a mlx_b", SCALE),
    _family(
        "LoHa", build_loha, "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", DIRECTION | {"hada_t1", "hada_t2"}
    ),
    _family("LoKr", build_lokr, _LOKR, DIRECTION | {"lokr_t2"}),
    _family("GLoRA", build_glora, "a1 a2 b1 b2", SCALE | BIASES | {"bm"}),
    _family("OFT or BOFT", build_diag, "oft_blocks", BIASES | {"alpha", "rescale"}),
    _family("OFT of PEFT", build_packed, "oft_R", BIASES | {"scaled_oft"}),
    _family("BOFT of PEFT", build_butterfly, "boft_R boft_s", BIASES),
    _family("HRA", build_reflections, "hra_u", BIASES),
    _family("VeRA", build_vera, "vera_lambda_b vera_lambda_d", SHARED | BIASES),
    _family("(IA)^3", build_vector, "ia3_weight on_input"),
    _family("(IA)^3 of PEFT", build_peft_vector, "ia3_l"),
    _family("full difference", build_full, "diff", BIASES),
    _family("replacement", build_saved, "saved_weight", BIASES),
    _family("norm difference", build_norm, "w_norm|b_norm"),
)
ALONE = (
    _family("difference of a bias", build_bias, "diff_b"),
    _family("replacement of a bias", build_saved_bias, "saved_bias"),
)
"""What a layer is that has one bias and nothing else."""


@cache  # the layers of a file are of few kinds
def find_family(roles: frozenset[Role]) -> Family | None:
    """Return the family of a layer with tensors of these roles, or None where they are no whole layer.

    Raises:
        FormatError: they are of several families at once.
    """
    found = [family for family in FAMILIES if family.own & roles]
    if len(found) > 1:
        raise FormatError(
            f"its tensors are of {' and of '.join(family.name for family in found)} at once. "
            "Two adapters were put into one file: apply them one by one."
        )
    if not found:
        return next((family for family in ALONE if family.own == roles), None)
    return found[0] if found[0].is_whole(roles) else None

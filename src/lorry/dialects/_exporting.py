"""What the writers of dialects share: which tensors of a layer have a name, and the names themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from lorry.adapters import Adapter, Entry
from lorry.algebra import Delta
from lorry.dialects._apart import Roles, take_apart
from lorry.dialects._suffixes import Role
from lorry.errors import UnsupportedAdapterError, some
from lorry.names import Target

LYCORIS_SUFFIXES: Mapping[Role, str] = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2")},
    "oft_blocks": "oft_blocks",
    "rescale": "rescale",
    "ia3_weight": "weight",
    "on_input": "on_input",
    **{name: name for name in ("diff", "diff_b", "w_norm", "b_norm")},
    **{name: name for name in ("bias_indices", "bias_values", "bias_size")},
}
"""The suffixes of LyCORIS, which kohya's trainers and ComfyUI took over. Source: KohakuBlueleaf/LyCORIS,
`lycoris/modules/*.py`, `weight_list`."""

ONETRAINER_OFT: Mapping[Role, str] = {"oft_R": "oft_R.weight", "scaled_oft": "oft_R.scaled_oft"}
"""OneTrainer's OFT, in kohya's names. Source: Nerogar/OneTrainer, `modules/module/LoRAModule.py`."""
_NOT_TRAINED = ("hada_t1", "hada_t2")
ONETRAINER_SUFFIXES: Mapping[Role, str] = {
    **ONETRAINER_OFT,
    **{
        role: suffix
        for role, suffix in LYCORIS_SUFFIXES.items()
        if role in ("down", "up", "alpha", "dora_scale")
        or (role.startswith(("hada_", "lokr_")) and role not in _NOT_TRAINED)
    },
}
"""What OneTrainer trains: LoRA, LoHa and LoKr, with DoRA's magnitudes, and OFT. Source: as above."""

WORDS: Mapping[Role, str] = {
    "mid": "a Tucker core",
    "alpha": "an alpha that is not its rank",
    "full_scale": "a scale on a delta without a rank",
    "dora_scale": "a DoRA magnitude of columns",
    "magnitude": "a DoRA magnitude",
    "lora_bias": "a bias with the scale of its LoRA",
    "diff_b": "a bias without the scale of its LoRA",
    "b_norm": "a bias",
    "saved_weight": "a whole weight",
    "saved_bias": "a whole bias",
    "saved_bias_of_base": "a whole bias",
    "bias_indices": "which adds single numbers of a weight",
    "oft_R": "an OFT of the input side",
    "oft_R_of_a_config": "an OFT of the input side with the options of a config",
    "oft_R_of_any_layer": "an OFT of the input side, which other programs turn the other way on convolutions, and "
    "whether this layer is one is not known without the base model (`--base`)",
    "boft_R": "a BOFT of the input side",
    "LoRA-XS": "a LoRA-XS, between singular vectors of the weight",
    "BoRA": "magnitudes of rows and of columns",
    "embedding_A": "of an embedding",
    "embedding_B": "of an embedding",
    "hra_u": "reflections of the input side",
    "ia3_l": "an (IA)^3 that holds factors",
    "ia3_weight": "an (IA)^3 that holds differences",
    "kohya_oft_blocks": "an OFT with a constraint of 0",
}
"""What a tensor is, where its family's name alone would not say why it has no place."""

TakeApart = Callable[[Delta], Roles]


def find_obstacles(
    adapter: Adapter, suffixes: Mapping[Role, str], apart: TakeApart = take_apart
) -> dict[str, str]:
    """Return, by target, what of an adapter has no name among these suffixes."""
    found = {str(entry.target): _obstacle(entry.delta, suffixes, apart) for entry in adapter.entries}
    return {target: what for target, what in found.items() if what}


def _obstacle(delta: Delta, suffixes: Mapping[Role, str], apart: TakeApart) -> str | None:
    missing = [role for role in apart(delta) if role not in suffixes]
    if not missing:
        return None
    words = WORDS.get(missing[0])
    return f"{delta.family}: {words}" if words else delta.family


def nameless(adapter: Adapter, has_name: Callable[[Target], bool]) -> dict[str, str]:
    """Return, by target, the layers of components that a dialect has no name for."""
    return {
        str(entry.target): "no name for this component"
        for entry in adapter.entries
        if not has_name(entry.target)
    }


def spelled(
    entries: Iterable[Entry],
    suffixes: Mapping[Role, str],
    name_of: Callable[[Entry], str],
    apart: TakeApart = take_apart,
) -> dict[str, Tensor]:
    """Return the tensors of all entries by key; the adapter's own tensors, where they need no other shape.

    Args:
        entries: without obstacles.
        suffixes: by role.
        name_of: the key before the suffix.
        apart: what takes a delta apart.

    Raises:
        UnsupportedAdapterError: two entries have one key.
    """
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        for role, tensor in apart(entry.delta).items():
            key = f"{name_of(entry)}.{suffixes[role]}"
            if key in tensors:
                raise UnsupportedAdapterError(
                    f"{entry.target}: another module has the key `{key}` in this dialect already."
                )
            tensors[key] = tensor
    return tensors


def check_writable(
    adapter: Adapter, obstacles: Mapping[str, str], dialect: str, has_tokens: bool = False
) -> None:
    """Raise when a writer would lose something of an adapter.

    Args:
        adapter: what is to be written.
        obstacles: by target, what the dialect has no names for.
        dialect: its name.
        has_tokens: whether the dialect has a place for tokens that an adapter brings along.

    Raises:
        UnsupportedAdapterError: names the first of what would be lost.
    """
    if adapter.unknown:
        raise UnsupportedAdapterError(
            f"{adapter.source} has {len(adapter.unknown)} keys that are not understood and would be lost: "
            f"{some(adapter.unknown, 3)}."
        )
    if adapter.embeddings and not has_tokens:
        tokens = some([repr(one.token) for one in adapter.embeddings], 3)
        raise UnsupportedAdapterError(
            f"{adapter.source} brings tokens along ({tokens}), which would be lost: the dialect {dialect!r} has no "
            "place for them. Kohya's has one, and so have OneTrainer's and OMI's: `--to kohya`."
        )
    if obstacles:
        listed = some((f"{target} ({what})" for target, what in obstacles.items()), 3)
        raise UnsupportedAdapterError(
            f"{adapter.source}: {len(obstacles)} of {len(adapter.entries)} layers cannot be written in the dialect "
            f"{dialect!r}, which has no names for them: {listed}."
        )

"""What sort of layer a target is, told from the last parts of its path."""

from __future__ import annotations

import re
from typing import Final

from lorry.names import Target

_NO_NORM: Final = r"(?!(\w*_)?(norm\w*|\w+norm|ln_[qk]|gamma)$)"
# Tried from the top; `_` stands for `.` too, since flattened paths (kohya's) cannot tell them apart.
_KINDS: Final = tuple(
    (kind, re.compile(rf"(^|_)({pattern})$"))
    for kind, pattern in (
        (
            "attention",
            r"(add_)?[qkv]_proj|out_proj|to_(q|k|v|qkv)|to_out(_0)?|to_add_out|attn_(qkv|proj)|add_out_proj"
            r"|(img|txt)_attn_(qkv|proj)|linear1|linear2|qkv",
        ),
        ("feed-forward", r"ff(_context)?_net_(0_proj|2)|(mlp_)?fc[12]|(img|txt)_mlp_[02]|proj_mlp|mlp_\w+"),
        (
            "time",
            r"time_emb_proj|time_embed(ding)?(_\w+)?|emb_layers_1|time_text_embed_\w+|timestep_embedder_\w+",
        ),
        ("projection", r"proj_in|proj_out"),
        (
            "convolution",
            r"conv[12]?|conv_(in|out|shortcut)|(in_layers_2|out_layers_3|skip_connection)|op",
        ),
        ("embedding", r"\w*embed(der|ding)?s?(_\w+)?"),
        (
            "modulation",
            r"norm\w*_linear(_\w+)?|\w*mod(ulation)?_lin(ear)?|adaln\w*|modulation|\w*scale_shift_table"
            r"|(adaLN|default)_modulation_\d|mod[XYCF]*_1|mod_[xy]|av_cross_attn_\w+|\w+modulations?_\w+_lin(ear)?",
        ),
        # What stands in an attention or a feed-forward of any original checkpoint, but for its norms.
        ("attention", rf"\w*(attn|[aA]ttention)\d?_{_NO_NORM}\w+|linear1_[qkv]"),
        ("feed-forward", rf"(\w+_)?(ffn?|mlp[XC]?|feed_forward|DenseReluDense)_{_NO_NORM}\w+|linear1_mlp"),
    )
)


def kind_of(target: Target) -> str:
    """Return "attention", "feed-forward", "convolution", … for a target, or "other"."""
    path = target.path.replace(".", "_")
    return next((kind for kind, pattern in _KINDS if pattern.search(path)), "other")

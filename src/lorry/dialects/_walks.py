"""The order in which cloneofsimo's tool met the layers of Stable Diffusion 1 and 2.

It walked diffusers of early 2023: in a UNet the down blocks, the up blocks, and the mid block last; in a block the
attentions before the resnets; in a transformer block attn1, ff, attn2, which later versions of diffusers reordered
to attn1, attn2, ff. A test holds the walk against the shapes of a real file.

Source: cloneofsimo/lora, `lora_diffusion/lora.py`; huggingface/diffusers v0.11, `models/attention.py`
(`BasicTransformerBlock`), `models/unet_2d_blocks.py`, `models/resnet.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

WIDTHS = (320, 640, 1280, 1280)
TIME = 1280
CLASSES = frozenset({"CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"})
"""The classes whose layers the tool trains; `Attention` is what diffusers later called `CrossAttention`."""
CLIP_LAYERS = ("k_proj", "v_proj", "q_proj", "out_proj")


class Step(NamedTuple):
    """A layer met on the walk."""

    path: str
    shape: tuple[int, ...]
    """Of its weight, without a 1x1 kernel."""
    kind: str
    """The class of the module that it was found in."""


def unet_walk(classes: frozenset[str], context: int, feed_forward_last: bool) -> list[Step]:
    """Return the layers of a UNet inside modules of `classes`, in the order they were met.

    Args:
        classes: names of module classes, of `CLASSES`.
        context: the width of the text encoder: 768 in Stable Diffusion 1, 1024 in 2.
        feed_forward_last: the order within a transformer block in later versions of diffusers.
    """
    wanted = classes | {"CrossAttention"} if "Attention" in classes else classes
    steps = [
        *_down(context, feed_forward_last),
        *_up(context, feed_forward_last),
        *_mid(context, feed_forward_last),
    ]
    return [step for step in steps if step.kind in wanted]


def clip_walk(layers: int, width: int) -> list[Step]:
    """Return the attention layers of a CLIP text encoder, in the order they were met."""
    names = [f"text_model.encoder.layers.{i}.self_attn.{name}" for i in range(layers) for name in CLIP_LAYERS]
    return [Step(name, (width, width), "CLIPAttention") for name in names]


def _down(context: int, last: bool) -> Iterator[Step]:
    for block, width in enumerate(WIDTHS):
        if block < 3:
            for i in range(2):
                yield from _attention(f"down_blocks.{block}.attentions.{i}", width, context, last)
        for i, wide in enumerate((WIDTHS[max(block - 1, 0)], width)):
            yield from _resnet(f"down_blocks.{block}.resnets.{i}", wide, width)


def _up(context: int, last: bool) -> Iterator[Step]:
    skips = [WIDTHS[0], *(width for width in WIDTHS[:-1] for _ in range(3)), WIDTHS[-1], WIDTHS[-1]]
    before = WIDTHS[-1]
    for block, width in enumerate(reversed(WIDTHS)):
        if block > 0:
            for i in range(3):
                yield from _attention(f"up_blocks.{block}.attentions.{i}", width, context, last)
        for i in range(3):
            yield from _resnet(
                f"up_blocks.{block}.resnets.{i}", (width if i else before) + skips.pop(), width
            )
        before = width


def _mid(context: int, last: bool) -> Iterator[Step]:
    yield from _attention("mid_block.attentions.0", WIDTHS[-1], context, last)
    for i in range(2):
        yield from _resnet(f"mid_block.resnets.{i}", WIDTHS[-1], WIDTHS[-1])


def _attention(path: str, width: int, context: int, last: bool) -> list[Step]:
    block = f"{path}.transformer_blocks.0"
    feed_forward = Step(f"{block}.ff.net.0.proj", (8 * width, width), "GEGLU")
    first, second = _heads(f"{block}.attn1", width, width), _heads(f"{block}.attn2", width, context)
    return [*first, *second, feed_forward] if last else [*first, feed_forward, *second]


def _heads(path: str, width: int, context: int) -> list[Step]:
    inputs = {"to_q": width, "to_k": context, "to_v": context, "to_out.0": width}
    return [Step(f"{path}.{name}", (width, wide), "CrossAttention") for name, wide in inputs.items()]


def _resnet(path: str, wide: int, width: int) -> Iterator[Step]:
    yield Step(f"{path}.conv1", (width, wide, 3, 3), "ResnetBlock2D")
    yield Step(f"{path}.time_emb_proj", (width, TIME), "ResnetBlock2D")
    yield Step(f"{path}.conv2", (width, width, 3, 3), "ResnetBlock2D")
    if wide != width:
        yield Step(f"{path}.conv_shortcut", (width, wide), "ResnetBlock2D")

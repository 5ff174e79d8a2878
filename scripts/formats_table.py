"""Write `docs/formats.md`: which families each dialect carries, measured by writing and reading back a layer of each.

    PYTHONPATH=src:tests python scripts/formats_table.py

The rows come from the tests' layers, the base models from the tables in `src/lorry`. What other programs do is typed
here, with its source.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src"), str(ROOT)]

import torch  # noqa: E402
from scripts.formats_comfyui import RECORD as MEASURED  # noqa: E402
from scripts.formats_matrix import FAMILIES, RECORD  # noqa: E402
from scripts.names.comfyui import KNOWN  # noqa: E402
from scripts.names.comfyui import RECORD as COMFYUI  # noqa: E402

from dialects.layers import LAYERS, Layer  # noqa: E402  # pyright: ignore[reportMissingImports]
from lorry.dialects import DIALECTS, get_dialect, read_adapter  # noqa: E402
from lorry.errors import UnsupportedAdapterError  # noqa: E402
from lorry.files import TensorFile  # noqa: E402
from lorry.pipelines.architectures import ARCHITECTURES  # noqa: E402

PAGE = ROOT / "docs" / "formats.md"
TABLES = ROOT / "src" / "lorry" / "binding" / "tables"
PATH = "unet.mid_block.attentions.0.proj_in"
PATHS = {
    "attention-processors": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "onetrainer": "transformer.transformer_blocks.0.attn.to_q",
    "omi": "transformer.double_blocks.0.img_attn.proj",
    "xlabs": "transformer.double_blocks.0.img_attn.proj",
    "stable-audio": "transformer.layers.0.self_attn.to_out",
}
"""Of dialects that have names for some layers alone, or are told by some."""
WRITTEN = [dialect.name for dialect in DIALECTS if dialect.is_written]

CONTROL = "in Flux's control files"
ROWS: dict[str, tuple[str, str, str, str]] = {
    "lora": ("LoRA", "yes", "yes", "yes"),
    "lora at scale 1": ("LoRA without an alpha", "yes", "yes", "yes"),
    "locon": ("LoCon (convolution)", "yes", "yes", "yes"),
    "locon at scale 1": ("LoCon without an alpha", "yes", "yes", "yes"),
    "lora bias": ("LoRA with its own bias", "yes", CONTROL, CONTROL),
    "lora diff_b": ("LoRA with `diff_b`", "no", "yes", "without the bias, logged"),
    "dora rows": ("DoRA of rows, `dora_scale`", "dropped in silence", "by another norm", "as if of columns"),
    "dora columns": ("DoRA of columns", "dropped in silence", "yes", "yes"),
    "dora of peft": ("DoRA, `lora_magnitude_vector`", "yes", "dropped, logged", "for Krea 2"),
    "dora of loha": ("DoRA over LoHa", "no", "rows by another norm", "an error"),
    "loha": ("LoHa", "no", "yes", "yes"),
    "loha tucker": ("LoHa with Tucker cores", "no", "in 2-d convolutions", "in 2-d convolutions"),
    "lokr whole": ("LoKr, two whole matrices", "Z-Image, Flux.2", "yes", "yes"),
    "lokr w2 of factors": ("LoKr of factors", "Z-Image, Flux.2", "yes", "yes"),
    "lokr tucker": ("LoKr with a Tucker core", "no", "not with torch 2.13, logged", "in 2-d convolutions"),
    "glora": ("GLoRA", "no", "yes", "no"),
    "oft": ("Diag-OFT", "no", "at strength 1, without a constraint or `rescale`", "no"),
    "boft": ("BOFT", "no", "at strength 1, with an alpha", "no"),
    "oft packed": ("OFT of PEFT and OneTrainer", "no", "no", "no"),
    "boft of peft": ("BOFT of PEFT", "no", "no", "no"),
    "ia3 rows": ("(IA)^3 of LyCORIS", "no", "no", "of linear layers"),
    "ia3 of peft, rows": ("(IA)^3 of PEFT", "no", "no", "no"),
    "hra": ("HRA", "no", "no", "no"),
    "full": ("full difference", "no", "yes", "yes"),
    "norm": ("norm layers", "no", "yes", "yes"),
    "lora with a sparse difference": (
        "LoRA with a sparse difference", "no", "without it, logged", "takes it for a bias"
    ),
    "replacement": ("a whole weight in its place", "no", "`set_weight`", "norms of Flux's control files"),
}  # fmt: skip
"""Layer of the tests: (family, diffusers 0.42.1, ComfyUI, InvokeAI 6.14.0-alpha). Those of diffusers were measured on
a tiny UNet, those of ComfyUI by `scripts/formats_comfyui.py` (Flux's control files: read in `comfy/lora_convert.py`).
Those of InvokeAI were read in invoke-ai/InvokeAI at 8e71a8a5, `invokeai/backend/patches/*`."""
SAME = (
    *("AllegroTransformer3DModel", "BriaFibo2Transformer2DModel", "BriaFiboTransformer2DModel"),
    *("BriaTransformer2DModel", "DreamLiteUNetModel", "ErnieImageTransformer2DModel"),
    *("GlmImageTransformer2DModel", "HiDreamImageTransformer2DModel", "Kandinsky5Transformer3DModel"),
    *("Kandinsky6SRTransformer3DModel", "Kandinsky6Transformer3DModel", "LatteTransformer3DModel"),
    *("LongCatAudioDiTTransformer", "MotifVideoTransformer3DModel", "NucleusMoEImageTransformer2DModel"),
    "QwenImageTransformer2DModel",
)
"""Models that are published with diffusers' names alone, or have them in ComfyUI too, or in the repository of their
authors, or whose conversion in diffusers takes off a container alone."""
OTHERS = {
    "DiTTransformer2DModel": "the original's one time embedder is a layer of every block here",
    "LuminaNextDiT2DModel": "all rows of `attention.wq` are those of two layers, of which a table has each row once",
    "PriorTransformer": "the original's fused rows go head by head",
    "Transformer2DModel": "as `DiTTransformer2DModel`",
}
"""Models whose original has other names that no table can say, or that nobody is known to write adapters with."""
NONE = ("RFD4ProteinaTransformer", "UNet1DModel", "UNetControlNetXSModel")
"""Models that no adapter files are known of."""
UNETS = (
    "StableCascadeUNet",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetMotionModel",
)
"""Models whose original names `binding/original_names.py` works out, as far as their layers are those of a UNet."""
WHOLE_UNETS = (
    *("AudioLDM2UNet2DConditionModel", "I2VGenXLUNet", "Kandinsky3UNet", "UNet3DConditionModel"),
    "UNetSpatioTemporalConditionModel",
)
"""Models of which it works out every name, of layers for time too."""
SHORT = {
    "lycoris": "lycoris",
    "onetrainer": "onetrainer",
    "kohya": "kohya",
    "peft": "peft",
    "xlabs": "xlabs",
    "stable-audio": "audio",
    "attention-processors": "att.-proc.",
    "comfyui": "comfyui",
    "lora-layers": "lora-layers",
    "omi": "omi",
    "dotted-kohya": "dotted",
    "diffusers": "diffusers",
}
"""Heads of the columns of the second table."""

HEAD = """# Which files are read and written

Made by `scripts/formats_table.py`, which writes a layer of each family in each dialect and reads it back; a test checks
that this page is what it makes. *exact* means that the tensors and their scale come back bit for bit; – that
`lorry convert` refuses by name. Every family of this table is read in every dialect that has names for it, and in any
mixture of containers, paths and suffixes besides.
"""


def verdict(layer: Layer, dialect: str) -> str:
    """Write one layer in a dialect, read it back, and say what became of it."""
    path = PATHS.get(dialect, PATH)
    tensors = {f"{path}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
    adapter = read_adapter(TensorFile(tensors))
    entry = adapter.entries[0]
    delta = entry.delta.fitted(layer.shape) or entry.delta
    adapter = replace(adapter, entries=(replace(entry, delta=delta),))
    try:
        file = get_dialect(dialect).write(adapter)
    except UnsupportedAdapterError:
        return "–"
    found = read_adapter(file).entries[0].delta
    mine, others = delta.tensors(), found.tensors()
    same = mine.keys() == others.keys() and all(
        torch.equal(tensor.flatten(), others[name].flatten()) for name, tensor in mine.items()
    )
    return "exact" if same and found.rank_scale == delta.rank_scale else "other tensors"


def families() -> str:
    """Return the table of families by dialect."""
    comfyui = json.loads(MEASURED.read_text("utf-8"))["comfyui"]
    heads = ["family", *WRITTEN, "diffusers 0.42.1", f"ComfyUI {comfyui}", "InvokeAI 6.14.0-alpha"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, (title, *others) in ROWS.items():
        torch.manual_seed(0)
        layer = LAYERS[name]()
        cells = [title, *(verdict(layer, dialect) for dialect in WRITTEN), *others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_architecture() -> str:
    """Return the table of the record: on how many architectures each dialect carries each family."""
    record: dict[str, dict[str, dict[str, str]]] = json.loads(RECORD.read_text("utf-8"))
    heads = ["family", *(SHORT[name] for name in WRITTEN)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for family in FAMILIES:
        verdicts = [Counter(found[family][name] for found in record.values()) for name in WRITTEN]
        lines.append(f"| {' | '.join([family, *map(_counts, verdicts)])} |")
    return "\n".join(lines)


def _counts(verdicts: Counter[str]) -> str:
    exact, apart = verdicts["exact"], verdicts["apart"]
    return f"{exact} + {apart}" if apart else str(exact or "–")


def architectures() -> str:
    """Return the table of base models: their names, and whose block names each dialect writes for them."""
    lines = ["| model class | original names | known by name to `--base` and `--model` |", "|---|---|---|"]
    named: dict[str, list[str]] = {}
    for name, parts in ARCHITECTURES.items():
        named.setdefault(next(iter(parts.values())).cls, []).append(f"`{name}`")
    classes = {path.stem for path in TABLES.glob("*.json")} | set(named)
    for cls in sorted(classes):
        table = TABLES / f"{cls}.json"
        has = cls.startswith("UNet") or table.exists()
        names = "the running block numbers of SGM" if cls.startswith("UNet") else "a table"
        whole = json.loads(table.read_text("utf-8")) if table.exists() else {}
        source = whole.get("source", "")
        if source and not whole["names"]:
            names = "the same as in diffusers; a table, typed, of others that are read"
        elif source and not source.startswith("diffusers.loaders"):
            names = "a table, typed"
        elif "scripts/" in source:
            names = "a table, in part typed"
        lines.append(
            f"| {cls} | {names if has else 'the same as in diffusers'} | {', '.join(named.get(cls, ['–']))} |"
        )
    return "\n".join(lines)


def comfyui_names() -> str:
    """Return the table of ComfyUI's models whose names are tried."""
    lines = ["| model class | ComfyUI's | names | not there |", "|" + "---|" * 4]
    for known, entry in zip(KNOWN, json.loads(COMFYUI.read_text("utf-8")), strict=True):
        none = f"`{known.none.replace('|', '`, `')}`" if known.none else "–"
        lines.append(f"| {known.model} | `{entry['comfyui']}` | {len(entry['names'])} | {none} |")
    return "\n".join(lines)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def others() -> str:
    """Return what is said of the models without a table."""
    reasons = ", ".join(f"`{name}` ({reason})" for name, reason in OTHERS.items())
    text = (
        "Every other denoiser that a pipeline of diffusers 0.42 has is read by the names of diffusers. The original "
        f"has those too for {_listed(SAME)}. The names of {_listed(UNETS)} are worked out, as far as they are those of "
        f"Stable Diffusion or Stable Cascade; those of {_listed(WHOLE_UNETS)} are worked out in whole. Other names "
        "than diffusers' are unknown keys for these models, for which nobody is known "
        f"to write adapters with them: {reasons}. No adapter files at all are known of {_listed(NONE)}."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def page() -> str:
    """Return the whole page."""
    written = ", ".join(f"`{name}`" for name in WRITTEN)
    only_read = ", ".join(f"`{dialect.name}`" for dialect in DIALECTS if not dialect.is_written)
    lists = textwrap.fill(f"Written are {written}; only read are {only_read}.", 120, break_on_hyphens=False)
    count = len(json.loads(RECORD.read_text("utf-8")))
    return f"""{HEAD}
## Families

{lists}

`xlabs`, `attention-processors` and `lora-layers` have no alpha and take LoRAs whose alpha is their rank; the first two
have names for attentions alone. `xlabs` is refused where XLabs' own loader would fail: it wants all layers of a block's
attention, of one rank and of FLUX.1's width, which the single layers of these tables are not. PEFT takes a LoKr whose
matrices have the shapes that it would make itself, and has one type and one set of options for all layers of a model:
what one config cannot say of all is refused. Whole weights and biases go into its folders beside layers that it tunes
(`modules_to_save`, `bias`), and PEFT loads them. PEFT turns a convolution's packed OFT the other way than OneTrainer
and sd-scripts do, and a file does not say which layers are convolutions: from one to the other it is converted where
the base is known, by `--base` or by other layers.

What is only read has a reason: `cloneofsimo` and its pickles count the layers of a diffusers of 2023 and name none,
`diffsynth-h3` is MiniMax-H3's `diffusers` with its rows in another order, `sat`, of CogVideoX's trainer, has no alpha
but 1. `onetrainer` is its mixture of diffusers' names and kohya's prefixes, which it calls legacy; of a UNet such a
file looks as kohya's does, and is read as `kohya`. diffusers 0.42.1 fails on Flux's where they have layers besides
those of attentions.

`stable-audio` is of Stable Audio 3's own trainer, and for that model alone: one rank, one alpha and one kind for all
layers, which a text says; others are refused. It has two families that no other dialect has: LoRA-XS, a small matrix
between the singular vectors of the base weight, and BoRA, a DoRA of rows and of columns.

`omi` has the names of the Open Model Initiative: the original checkpoint's after `transformer.`, `unet.`, `clip_l.`,
`clip_g.` or `t5.`, and the layers of a fused one each by itself, with a number behind its name. OneTrainer had them in
its backups, and in HiDream's files, until July 2026; what lorry writes is what its own code made of the same adapter,
but for two layers of Chroma's `distilled_guidance_layer` (`in_proj`, `out_proj`), which it left out. InvokeAI reads
FLUX.1's where the parts of each fused layer are all there, without the first layer, which it logs; and SDXL's where the
header has the `ot_branch` and `modelspec.architecture` that OneTrainer wrote, which lorry keeps and does not make up.
Written are those of Stable Diffusion 1 and 2, SDXL, FLUX.1, SD3, Chroma, HiDream, HunyuanVideo, PixArt and Stable
Cascade; HiDream's are diffusers' own, and are read as `dotted-kohya`.

Stability AI's Control-LoRAs are no adapters of a UNet: they make a ControlNet of it.
`lorry.control_net(file, unet)` does so; where an adapter is expected they are refused by name.

The last three columns say whether those programs apply the family in the spelling that is usual for it: what diffusers
and ComfyUI do was measured, what InvokeAI does was read in its source. "Logged" is a line in the log and no error.
ComfyUI's is measured by `scripts/formats_comfyui.py FOLDER`, which puts the tests' layers through `comfy/lora.py` of a
checkout and compares the weights with lorry's, at strengths 1 and 0.5. Its record is
[formats_comfyui.json](formats_comfyui.json), with the version: 0.12.1 as in a fork that can be installed
(hiddenswitch/pip-and-uv-installable-ComfyUI at 87606c5f); 0.3.64 (Comfy-Org/ComfyUI at a125cd84) gave the same.

{families()}

A full difference, a whole value or factors may also be for a parameter that is a block's own and no layer's: Wan's
`modulation` (`scale_shift_table` in diffusers; `diff_m` in the files of its distilled LoRAs) and what other models have
of such. diffusers leaves them out with a line in its log.

A LoRA or a full difference may be for an embedding too (`token_embedding` of a CLIP, `shared` of a T5). PEFT's LoRA of
one, whose tensors are `lora_embedding_A` and `lora_embedding_B`, is written as such in PEFT's dialect, and as a LoRA of
the same matrix in kohya's and ComfyUI's; diffusers' loader applies none, and `diffusers` is refused by name. The base's
own embedding, which PEFT saves beside it, is ignored. A DoRA of one is refused, and so are tokens that are to be
learned while such a layer is loaded.

MLX's LoRAs (`lora_a` and `lora_b`, transposed) and mflux's names of a feed-forward (`ff.linear1`) are read, of FLUX.1;
the LoRA in a checkpoint of LongLive's kind (`generator_lora` in a pickle); `generator.` and `velocity_model.` in front
of a denoiser's names, and its component twice or flattened (`unet.unet.…`, `transformer_transformer_blocks_0_…`).

A number that stands alone beside the layers is read by its name: `lora_alpha`, `network_alpha` or `alpha` is the alpha
of all layers without one, over the root of the rank beside `use_rslora`; `step`, `epoch`, `rank` and ComfyUI's
`scaled_fp8` carry no weights, and are ignored with the reason. Any other is an unknown key.

sd-scripts' OFT of FLUX.1 has the parts of each fused layer by number (`oft_blocks.0`), with one alpha for them all: it
is read, and written in LyCORIS's names, each part a layer of its own.

FastVideo's names of what a layer has are read (`lora_alpha`, with `lora_rank` ignored; `diff_param` and `set_param` of
parameters that are no layer's); LyCORIS's prefix with a component (`lycoris_unet_`, `lycoris_te1_`); and Nunchaku's
`add_qkv_proj` for the fused layer that diffusers calls `to_added_qkv`. A file of Wan 2.2 may have layers for both of
its denoisers, after `transformer_1.` or `transformer.` and `transformer_2.`, with `diffusion_model.` before or not.

## Families, dialects and architectures

On how many of {count} architectures files of a family go into a dialect and back, with shuffled keys, bit for bit. Of
two numbers, the second is of those where layers are refused that the original checkpoint has fused and diffusers' model
has not (a LoKr of `to_q` and one of `to_k` are no LoKr of `qkv`), and other layers are carried. Each single verdict is
in [formats.json](formats.json), which `scripts/formats_matrix.py` writes.

{by_architecture()}

## Base models

The names of diffusers are read for every model. `comfyui` and `omi` are written in the original checkpoint's names;
`kohya` too, but for Stable Diffusion 1 and 2, whose trainers have the names of diffusers; `diffusers`, `peft`,
`lycoris` and `onetrainer` in those of diffusers. Layers that the original has fused are put together and taken apart
exactly where their family allows it.
Tables are made by running installed conversion code, but for those that are *typed*, after scripts of diffusers that
are in no package (LongCat-Image's after what ComfyUI knows its checkpoint by); each name of theirs must be a layer of
the model and each layer must have one. HunyuanDiT's `norm2` and `norm3` are each other's in the original: which a file
means the rest of its names tells (`Wqkv` or `to_q`), and where none does its dialect. What ComfyUI calls otherwise than
HunyuanVideo's checkpoints do is read, and written in its dialect.

{architectures()}

{others()}

## ComfyUI's names

Every module and parameter of ComfyUI's own models (0.12.1; `scripts/names/comfyui.py` records their names and shapes)
is tried after `diffusion_model.`, `lora_unet_`, `lycoris_`, `transformer.`, `lora_transformer_`, `base_model.model.`
and nothing, against the model of diffusers on the meta device: one dialect takes the file, and each key lands on a
module of that shape. The other way round, each layer of diffusers' model has a name there, but for Wan Animate's
`motion_synthesis_weight` and Stable Audio's `time_proj`. Blocks count once. "Not there" are patterns of what diffusers'
model has not, or keeps as no layer.

What later versions of ComfyUI (up to 0.38.1) take was read in its source: ACE-Step 1.5's `decoder.…` is written
too; JoyImage and ERNIE-Image have diffusers' names; LTX-2.3, Krea 2, Ideogram 4, Qwen-Image 2.1 and MiniMax-H3
have those of their checkpoints. The UNets of Stable Diffusion and Stable Cascade are tried by tests of their own.
Text encoders are written under its names for them (`t5xxl`, `umt5xxl`, `pile_t5xl`, `mt5xl`, `t5base`, `byt5_small`,
`hydit_clip`, `clip_l`, `clip_h`, `clip_g`, `llama`, `qwen3_4b`, …), by their width and, where two have one width, by
the class of the base's; what has none there is refused.
OmniGen 2, ACE-Step 1, Chroma Radiance and Hunyuan3D are in ComfyUI and not in diffusers.

{comfyui_names()}

## Text

A file's text goes with it: `ss_*`, `modelspec.*` with the trigger phrase, and whatever else is in the header. Hashes of
the tensors (`sshs_model_hash`, `sshs_legacy_hash`, `modelspec.hash_sha256`) are made anew. PEFT's ranks, alphas,
patterns and `use_rslora` become alpha tensors and the other way round; the config itself waits in the header under
`lorry.peft_config`, and is itself again in files of PEFT and diffusers while it still tells the truth of every layer.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

"""Builds the parts of the pipeline and writes the folder that `from_pretrained` reads."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from concepts import ALL, BACKGROUNDS, COLOURS, SUBJECTS
from dataset import OPENINGS

LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def _words() -> list[str]:
    """Every word of every caption, letters and other signs apart, as the tokenizer splits them."""
    names = [*(c.noun for c in ALL), *COLOURS, *BACKGROUNDS, *SUBJECTS, *OPENINGS, "a an on background"]
    return sorted(set(re.findall(r"[a-z]+|[^\sa-z]+", " ".join(names))))


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges until each word is one token; ties go by the alphabet, so every run learns the same."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in split for pair in pairwise(parts)):
        left, right = best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in split:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = [left + right]
                i += 1
    return merges


def new_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding of the caption words: a known word is one token, any other falls back to bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(_words())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), START, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two small layers, trained together with the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Two levels, 8x8 and 4x4, with cross attention at both."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=(4, 6),
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Velocity prediction; trailing spacing starts at the noisiest step however few there are."""
    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def export(
    folder: Path,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderTiny,
) -> None:
    """Writes the pipeline in fp16."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
    _tidy(folder)


def _edit(config: Path, change: dict[str, str | None]) -> None:
    settings = json.loads(config.read_text()) | change
    config.write_text(
        json.dumps({k: v for k, v in settings.items() if k not in change or v}, indent=2) + "\n"
    )


def _tidy(folder: Path) -> None:
    """Makes the folder load in fp32, without warnings, and in older versions of transformers.

    transformers takes the dtype of its config, diffusers fp32: left alone, the two would not fit. `block_out_channels`
    is derived, and the class that writes it warns when it reads it.
    """
    _edit(folder / "text_encoder/config.json", {"dtype": "float32"})
    _edit(folder / "vae/config.json", {"block_out_channels": None, "_name_or_path": None})
    model = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + merges)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def load(folder: Path) -> StableDiffusionPipeline:
    """The exported pipeline in fp32, silent."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)

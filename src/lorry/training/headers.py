"""What is written into an adapter's file about its training, in the words that other programs look for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from lorry.files import TensorFile, rehashed, write_safetensors
from lorry.training.adapter_config import OF_THE_WEIGHT
from lorry.training.bases import Base
from lorry.training.preparing import Item
from lorry.training.settings import SHIPPED, Settings

_ALGORITHMS: Final = {"dora": "lora", "loha": "loha", "lokr": "lokr", "ia3": "ia3", "oft": "diag-oft"}
"""What LyCORIS calls the families that kohya's own module does not have."""
TINYBASE: Final = "lorry tinybase"
"""What the header calls the shipped base."""


@final
@dataclass(frozen=True, slots=True)
class Story:
    """How an adapter came to be."""

    settings: Settings
    name: str
    base: Base
    base_hash: str
    items: Sequence[Item]
    prediction: str
    total_batch: int
    steps_per_epoch: int
    resolution: int


def header(story: Story, step: int) -> dict[str, str]:
    """Return the metadata of an adapter after `step` steps: kohya's, modelspec's and lorry's own.

    The times of day are left out, so that the same run makes the same file, and folders are named without the path to
    them.
    """
    return {**_kohya(story, step), **_modelspec(story), **_own(story)}


def write_with_hash(path: Path, file: TensorFile) -> Path:
    """Write an adapter file with the hash of its tensors, by which other programs and Civitai know it."""
    hashes = dict.fromkeys(("sshs_model_hash", "modelspec.hash_sha256"), "")
    return write_safetensors(path, file.tensors, rehashed(file.tensors, {**file.metadata, **hashes}))


def tag_frequency(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    """Return how often each part of captions between commas occurs, by folder."""
    found: dict[str, Counter[str]] = {}
    for item in items:
        tags = [tag.strip() for tag in item.picture.caption.split(",")]
        found.setdefault(item.picture.group, Counter()).update(tag for tag in tags if tag)
    return {group: dict(counts) for group, counts in found.items()}


def _kohya(story: Story, step: int) -> dict[str, str]:
    s = story.settings
    trained = [item for item in story.items if not item.picture.prior]
    values: dict[str, Any] = {
        "output_name": story.name,
        "network_module": "lycoris.kohya" if s.family in _ALGORITHMS else "networks.lora",
        "network_dim": _times(s) * s.rank,
        "network_alpha": _times(s) * float(s.rank if s.alpha is None else s.alpha),
        "network_args": _network_args(s),
        "base_model_version": story.base.kohya_version,
        "v2": story.base.architecture.startswith("stable-diffusion-v2"),
        "sd_model_name": TINYBASE if s.base == SHIPPED else _unplaced(s.base),
        "learning_rate": s.rate,
        "unet_lr": s.rate,
        "text_encoder_lr": (s.rate if s.text_rate is None else s.text_rate) if s.text_encoder else None,
        "lr_scheduler": s.schedule,
        "lr_warmup_steps": s.warmup,
        "optimizer": s.optimiser,
        "max_grad_norm": s.clip,
        "max_train_steps": s.steps,
        "steps": step,
        "epoch": -(-step // story.steps_per_epoch),
        "num_epochs": -(-s.steps // story.steps_per_epoch),
        "num_batches_per_epoch": story.steps_per_epoch,
        "num_train_images": sum(item.picture.repeats for item in trained),
        "num_reg_images": len(story.items) - len(trained),
        "batch_size_per_device": s.batch,
        "total_batch_size": story.total_batch,
        "gradient_accumulation_steps": s.accumulate,
        "gradient_checkpointing": s.checkpointing,
        "mixed_precision": s.precision,
        "seed": s.seed,
        "resolution": f"({story.resolution}, {story.resolution})",
        "enable_bucket": s.buckets,
        "bucket_info": _bucket_info(story.items),
        "caption_dropout_rate": s.caption_dropout,
        "min_snr_gamma": s.min_snr or None,
        "noise_offset": s.noise_offset or None,
        "prior_loss_weight": s.prior_weight,
        "random_flip": s.flip,
        "cache_latents": True,
        "tag_frequency": tag_frequency(trained),
        "dataset_dirs": _folders(trained),
    }
    return {f"ss_{name}": _text(value) for name, value in values.items()}


def _network_args(s: Settings) -> dict[str, str]:
    args = {"algo": _ALGORITHMS[s.family]} if s.family in _ALGORITHMS else {}
    if s.family == "dora":
        args["dora_wd"] = "True"
    if s.conv_rank is not None:
        rank, alpha = s.conv_rank, float(s.conv_alpha or s.conv_rank)
        args |= {"conv_dim": str(_times(s) * rank), "conv_alpha": str(_times(s) * alpha)}
    return args


def _times(s: Settings) -> int:
    """How many times its rank an adapter is saved with."""
    return 2 if s.init in OF_THE_WEIGHT else 1


def _bucket_info(items: Sequence[Item]) -> dict[str, Any]:
    counts = Counter(item.size for item in items)
    return {
        "buckets": {
            str(number): {"resolution": list(size), "count": count}
            for number, (size, count) in enumerate(sorted(counts.items()))
        }
    }


def _folders(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    counts = Counter((item.picture.group, item.picture.repeats) for item in items)
    return {group: {"n_repeats": repeats, "img_count": n} for (group, repeats), n in counts.items()}


def _modelspec(story: Story) -> dict[str, str]:
    found = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{story.base.architecture}/lora",
        "implementation": "diffusers",
        "title": story.settings.title or story.name,
        "resolution": f"{story.resolution}x{story.resolution}",
        "prediction_type": story.prediction,
    }
    words = story.settings.trigger_words or (story.settings.trigger,)
    if words != ("",):
        found["trigger_phrase"] = ", ".join(words)
    return {f"modelspec.{name}": value for name, value in found.items()}


def _own(story: Story) -> dict[str, str]:
    s = story.settings
    named = {name: _unplaced(getattr(s, name)) for name in ("base", "data", "out", "prior")}
    return {
        "format": "pt",
        "lorry.base_sha256": story.base_hash,
        "lorry.settings": json.dumps(replace(s, **named).tables(), sort_keys=True),
    }


def _unplaced(name: str) -> str:
    """A folder without the path to it, which is nobody's business; the id of a model on the Hub as it is."""
    return Path(name).name if Path(name).exists() else name


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)

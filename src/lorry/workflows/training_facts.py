"""What an adapter's metadata says of how it was trained, in one vocabulary for all trainers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from lorry.errors import some

_KEYS: Mapping[str, tuple[str, ...]] = {
    "base model": ("ss_sd_model_name", "modelspec.architecture", "ss_base_model_version", "ot_base_model"),
    "title": ("modelspec.title", "ss_output_name", "name"),
    "author": ("modelspec.author",),
    "date": ("modelspec.date", "ss_training_started_at"),
    "images": ("ss_num_train_images",),
    "resolution": ("ss_resolution", "modelspec.resolution"),
    "steps": ("ss_steps", "ss_max_train_steps", "training_info.step"),
    "epochs": ("ss_epoch", "ss_num_epochs", "training_info.epoch"),
    "batch size": ("ss_total_batch_size", "ss_batch_size_per_device"),
    "learning rate": ("ss_learning_rate",),
    "learning rate, unet": ("ss_unet_lr",),
    "learning rate, text": ("ss_text_encoder_lr",),
    "scheduler": ("ss_lr_scheduler",),
    "optimizer": ("ss_optimizer",),
    "network": ("ss_network_module",),
    "network options": ("ss_network_args",),
    "clip skip": ("ss_clip_skip",),
    "noise offset": ("ss_noise_offset",),
    "min SNR gamma": ("ss_min_snr_gamma",),
    "prediction": ("modelspec.prediction_type",),
    "seed": ("ss_seed",),
    "mixed precision": ("ss_mixed_precision",),
}
"""What is told, and the keys that may say it, the best first. Source: kohya-ss/sd-scripts, `train_network.py`;
Stability-AI/ModelSpec; ostris/ai-toolkit, `toolkit/metadata.py`."""
_TRIGGERS = ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_word", "trained_words")
_EMPTY = ("", "None", "null", "{}", "[]")


@final
@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How an adapter was trained, as far as its metadata says."""

    settings: Mapping[str, str]
    trigger: str | None
    tags: Mapping[str, int]
    """How many captions had each tag, the most frequent first."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said."""
        return not (self.settings or self.trigger or self.tags)

    def as_dict(self) -> dict[str, Any]:
        """The facts in types that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        lines = ["training:"] + [f"  {name:<20}  {value}" for name, value in self.settings.items()]
        if self.trigger:
            lines.append(f"  {'trigger words':<20}  {self.trigger}")
        if self.tags:
            listed = some([f"{tag} ({count})" for tag, count in self.tags.items()], 12)
            lines.append(f"  {'tags':<20}  {listed}")
        return "\n".join(lines)


def training_facts(metadata: Mapping[str, str]) -> TrainingFacts:
    """Return what metadata says of the training. Never raises: what cannot be read is left out."""
    settings = {}
    for name, keys in _KEYS.items():
        value = next((metadata[key] for key in keys if metadata.get(key, "") not in _EMPTY), None)
        if value is not None:
            settings[name] = " ".join(value.split())
    trigger = next((metadata[key] for key in _TRIGGERS if metadata.get(key, "") not in _EMPTY), None)
    return TrainingFacts(settings, trigger, _tags(metadata.get("ss_tag_frequency", "")))


def _tags(text: str) -> dict[str, int]:
    """Add up `{folder: {tag: count}}`."""
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool):
                found[tag.strip()] += count
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

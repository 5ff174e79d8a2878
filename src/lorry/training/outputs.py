"""What a run writes while it goes on: sample pictures, checkpoints and the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from lorry.training import adapters
from lorry.training.bases import Base
from lorry.training.checkpoints import Checkpoint, save_checkpoint
from lorry.training.engine import Engine
from lorry.training.headers import Story, header
from lorry.training.processes import Process
from lorry.training.records import Records
from lorry.training.samples import draw_samples


@final
@dataclass(frozen=True, eq=False, slots=True)
class Outputs:
    """Writes what a run has come to into its folder."""

    process: Process
    engine: Engine
    components: Mapping[str, nn.Module]
    """The models that the adapter is on."""
    story: Story
    facts: Mapping[str, Any]
    """What must be the same in a run that goes on."""

    @property
    def adapter(self) -> Path:
        """The file of the newest state."""
        return self.process.out / f"{self.process.settings.name}.safetensors"

    def sample(self, step: int) -> None:
        """Add a row to the contact sheet; in other processes than the main one, only draw along."""
        s, base = self.process.settings, self.story.base
        captions = dict.fromkeys(item.picture.caption for item in self.story.items)
        base.pipeline.to(self.process.device)
        with _evaluating(base), self.engine.weights_to_use(), self.process.accelerator.autocast():
            sheet = draw_samples(
                base.pipeline,
                s.sample_prompts or tuple(captions)[:4],
                self.process.out if self.process.is_main else None,
                step,
                steps=s.sample_steps,
                guidance=s.sample_guidance,
                resolution=self.story.resolution,
            )
        if sheet is not None:
            self.process.watcher.saved(sheet, step)

    def save(self, step: int, records: Records) -> None:
        """Write a checkpoint, the adapter and the picture of the losses."""
        s = self.process.settings
        weights = {name: p.detach() for name, p in self.engine.parameters.items()}
        save_checkpoint(self.process.out, Checkpoint(step, weights, self.engine.state(), self.facts), s.keep)
        head = header(self.story, step)
        with self.engine.weights_to_use():
            if step < s.steps:
                numbered = self.adapter.with_stem(f"{s.name}-{step:06}")
                adapters.write_adapter(self.components, numbered, s.dialect, head)
            adapters.write_adapter(self.components, self.adapter, s.dialect, head)
        records.draw()
        self.process.watcher.saved(self.adapter, step)


@contextmanager
def _evaluating(base: Base) -> Iterator[None]:
    """Models as they are used, inside the context; afterwards as they were."""
    modes = {model: model.training for model in (base.denoiser, *base.text_encoders.values())}
    for model in modes:
        model.eval()
    try:
        yield
    finally:
        for model, mode in modes.items():
            model.train(mode)

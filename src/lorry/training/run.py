"""A whole run: from a folder of pictures to a file, with everything that stands in the run's folder."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn

from lorry.errors import CheckpointError, DataError, SettingsError
from lorry.training import adapters
from lorry.training.bases import Base
from lorry.training.buckets import nearest_size
from lorry.training.caches import TensorCache, model_hash
from lorry.training.checkpoints import Checkpoint, check_same_run, find_checkpoint, save_checkpoint
from lorry.training.data import DataSet, read_data
from lorry.training.engine import Engine, Material
from lorry.training.extras import needed
from lorry.training.headers import Story, header
from lorry.training.loading import load_base, quiet
from lorry.training.objectives import get_objective
from lorry.training.order import Order
from lorry.training.preparing import Item, cache_captions, cache_latents, latent_key
from lorry.training.priors import draw_priors
from lorry.training.records import Records
from lorry.training.samples import draw_samples
from lorry.training.settings import Settings
from lorry.training.watching import Progress, Silent, Watcher, peak_memory

SETTINGS: Final = "settings.toml"
LOGS: Final = "logs"


@final
@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    adapter: Path
    """The file, of the state at `step`."""
    step: int
    loss: float
    """The average of the last steps."""
    finished: bool
    """False when it was asked to stop."""


def train(settings: Settings, watcher: Watcher, *, resume: bool = False) -> Result:
    """Train an adapter.

    The run's folder gets the adapter (`name.safetensors`, and one for each checkpoint), `settings.toml`, `losses.csv`
    and `losses.png`, `samples.png`, `checkpoints/`, `logs/` for TensorBoard and `cache/`.

    Args:
        settings: of the run.
        watcher: is told what happens.
        resume: go on from the newest checkpoint in the run's folder.

    Raises:
        SettingsError: a setting is missing, or does not fit the others or the base.
        DataError: there is nothing that can be trained on.
        CheckpointError: the folder holds another run, or nothing to go on from.
        MissingPackageError: a package of the extra `train` is not installed.
        TrainingError: the loss is no finite number.
        LorryError: the base cannot be loaded, or trained in this way.
    """
    needed("accelerate", "Training")
    return _Run(settings, watcher, resume).run()


@final
class _Run:
    def __init__(self, settings: Settings, watcher: Watcher, resume: bool) -> None:
        for name in ("data", "out"):
            if not getattr(settings, name):
                raise SettingsError(f"`{name}` is not given: say which folder.")
        self.settings = replace(settings, name=settings.name or Path(settings.data).resolve().name)
        self.out = Path(settings.out)
        self.watcher, self.resume = watcher, resume

    def run(self) -> Result:
        from accelerate.state import AcceleratorState

        try:
            with quiet():
                return self._run()
        finally:
            AcceleratorState._reset_state(reset_partial_state=False)  # another run may have another precision

    def _run(self) -> Result:
        self.accelerator = self._start_accelerate()
        if not self.accelerator.is_main_process:
            self.watcher = Silent()
        data, prior = self._read_data()
        checkpoint = self._find_checkpoint()
        base, _ = load_base(self.settings, self.accelerator.device)
        objective = get_objective(base.pipeline.scheduler, self.settings.min_snr, self.settings.noise_offset)
        base_hash = model_hash(base.denoiser)
        prior = prior or self._draw_priors(base)
        material, data = self._prepare(base, data, prior)
        components = adapters.put_on(base, self.settings)
        adapters.check_can_be_written(components, self.settings.dialect)
        for model in components.values():
            model.to(self.accelerator.device)  # text encoders in training: the denoiser is there already
        engine = Engine(
            self.settings, base, objective, material, adapters.named_parameters(components), self.accelerator
        )
        facts = self._facts(base_hash, data, components, material)
        done = 0
        if checkpoint is not None:
            check_same_run(checkpoint, facts)
            engine.restore(checkpoint.weights, checkpoint.state)
            done = checkpoint.step
        story = Story(
            settings=self.settings,
            name=self.settings.name,
            base=base,
            base_hash=base_hash,
            items=material.items,
            prediction=objective.prediction,
            total_batch=self._total_batch,
            steps_per_epoch=material.order.steps_per_epoch,
            resolution=self.settings.resolution or base.resolution,
        )
        return self._train(engine, base, components, story, facts, done)

    # --- before the first step --------------------------------------------------------------------------------

    def _read_data(self) -> tuple[DataSet, DataSet | None]:
        s = self.settings
        data = read_data(Path(s.data), s.trigger)
        prior = read_data(Path(s.prior), prior_weight=s.prior_weight) if s.prior else None
        for note in (*data.notes, *(prior.notes if prior else ())):
            self.watcher.note(note)
        return data, prior

    def _start_accelerate(self) -> Any:
        from accelerate import Accelerator

        s = self.settings
        trackers: Any = None
        if s.tensorboard:
            needed("tensorboard", "TensorBoard logs (`tensorboard = false` does without)")
            trackers = ["tensorboard"]
        mixed = {"auto": None, "float32": "no", "bf16": "bf16", "fp16": "fp16"}[s.precision]
        if mixed is None:
            on_gpu = torch.cuda.is_available()
            mixed = "no" if not on_gpu else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        self.out.mkdir(parents=True, exist_ok=True)
        accelerator = Accelerator(mixed_precision=mixed, log_with=trackers, project_dir=self.out / LOGS)
        if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise SettingsError(
                f"{accelerator.distributed_type.value} splits up the base's weights, which an adapter is put on: "
                "`lorry train` runs on one process or on several with the whole base each. Choose multi-GPU in "
                "`accelerate config`; `quantize` and `checkpointing` save memory."
            )
        if accelerator.is_main_process:
            accelerator.init_trackers("lorry")
        return accelerator

    def _find_checkpoint(self) -> Checkpoint | None:
        checkpoint = find_checkpoint(self.out)
        if self.resume and checkpoint is None:
            self.watcher.note("There is no checkpoint yet: the run begins at step 0.")
        if not self.resume and checkpoint is not None:
            raise CheckpointError(
                f"{self.out} holds a run that is at step {checkpoint.step}. Go on with `lorry train --resume "
                f"{self.out}`, or choose another folder."
            )
        if self.accelerator.is_main_process:
            draft = self.out / f".{SETTINGS}"
            draft.write_text(self.settings.written(), encoding="utf-8")
            draft.replace(self.out / SETTINGS)
        self.accelerator.wait_for_everyone()
        return checkpoint

    def _draw_priors(self, base: Base) -> DataSet | None:
        s = self.settings
        if not s.prior_prompt:
            return None
        folder = self.out / "prior"
        if self.accelerator.is_main_process:
            base.pipeline.to(self.accelerator.device)
            draw_priors(
                base.pipeline,
                s.prior_prompt,
                s.prior_count,
                folder,
                seed=s.seed,
                steps=s.sample_steps,
                guidance=s.sample_guidance,
                advance=self.watcher.prepare,
            )
        self.accelerator.wait_for_everyone()
        return read_data(folder, prior_weight=s.prior_weight)

    def _prepare(self, base: Base, data: DataSet, prior: DataSet | None) -> tuple[Material, DataSet]:
        """Fill the cache, each process its share, and plan the order."""
        s, device = self.settings, self.accelerator.device
        resolution, step = s.resolution or base.resolution, s.bucket_step or base.size_step
        if resolution % step:
            raise SettingsError(
                f"`resolution`: {resolution} is no multiple of {step}, which this base needs."
            )
        cache, vae_hash = TensorCache(self.out / "cache"), model_hash(base.pipeline.vae)
        items = []
        for picture in (*data.pictures, *(prior.pictures if prior else ())):
            size = nearest_size(picture.size, resolution, step) if s.buckets else (resolution, resolution)
            items.append(Item(picture, size, latent_key(picture, size, vae_hash, flip=s.flip)))
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        cache_latents(base, items[mine], cache, flip=s.flip, device=device, advance=self.watcher.prepare)
        text_hash = ""
        if not s.text_encoder:
            captions = sorted({"", *(item.picture.caption for item in items)})
            text_hash = " ".join(model_hash(model) for model in base.text_encoders.values())
            cache_captions(
                base, captions[mine], cache, text_hash, device=device, advance=self.watcher.prepare
            )
        self.accelerator.wait_for_everyone()
        items, data = self._without_refused(items, data, cache)
        order = Order(_buckets(items), self._total_batch, s.seed)
        return Material(items, order, cache, text_hash), data

    def _without_refused(
        self, items: list[Item], data: DataSet, cache: TensorCache
    ) -> tuple[list[Item], DataSet]:
        """Leave out the pictures that turned out to be broken; all processes find the same ones."""
        refused = {item.picture: reason for item in items if (reason := cache.find_refusal(item.key))}
        for reason in refused.values():
            self.watcher.note(f"{reason} Skipped.")
        kept = tuple(picture for picture in data.pictures if picture not in refused)
        if not kept:
            raise DataError(
                f"Not one picture of {self.settings.data} can be read: {next(iter(refused.values()))}"
            )
        return [item for item in items if item.picture not in refused], DataSet(kept, data.notes)

    @property
    def _total_batch(self) -> int:
        return self.settings.batch * self.settings.accumulate * self.accelerator.num_processes

    def _facts(
        self, base_hash: str, data: DataSet, components: Mapping[str, nn.Module], material: Material
    ) -> dict[str, Any]:
        s = self.settings
        same = (
            "optimiser",
            "rate",
            "text_rate",
            "weight_decay",
            "beta2",
            "warmup",
            "schedule",
            "clip",
            "ema",
        )
        same += ("seed", "flip", "caption_dropout", "min_snr", "noise_offset", "targets", "precision")
        return {
            "base": base_hash,
            **adapters.described(components),
            "data": data.fingerprint(),
            "sizes of pictures": sorted({f"{w}x{h}" for w, h in (item.size for item in material.items)}),
            "pictures a step": self._total_batch,
            **{name: getattr(s, name) for name in same},
        }

    # --- the steps --------------------------------------------------------------------------------------------

    def _train(
        self,
        engine: Engine,
        base: Base,
        components: Mapping[str, nn.Module],
        story: Story,
        facts: Mapping[str, Any],
        done: int,
    ) -> Result:
        s, main = self.settings, self.accelerator.is_main_process
        records = Records(self.out, done) if main else None
        prompts = s.sample_prompts or tuple(dict.fromkeys(i.picture.caption for i in story.items))[:4]
        clock, first, stop = time.perf_counter(), done, False
        if main and s.sample_every and done == 0:
            self._sample(engine, base, prompts, 0, story.resolution)
        with _asked_to_stop() as asked:
            while done < s.steps and not stop:
                outcome = engine.step(done, bool(asked))
                done, stop = done + 1, outcome.stop
                if records is not None:
                    records.add(done, outcome.loss, outcome.rate)
                    speed = (done - first) / (time.perf_counter() - clock)
                    memory = peak_memory(self.accelerator.device)
                    self.watcher.step(
                        Progress(done, s.steps, outcome.loss, records.average, outcome.rate, speed, memory)
                    )
                    self.accelerator.log({"loss": outcome.loss, "rate": outcome.rate}, step=done)
                paused = time.perf_counter()
                last = done == s.steps or stop
                if main and s.sample_every and (done % s.sample_every == 0 or done == s.steps):
                    self._sample(engine, base, prompts, done, story.resolution)
                if main and records is not None and (done % s.save_every == 0 or last):
                    self._save(engine, components, story, facts, done, records)
                clock += time.perf_counter() - paused
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        average = records.average if records is not None and records.rows else float("nan")
        return Result(self.out / f"{s.name}.safetensors", done, average, done >= s.steps)

    def _sample(
        self, engine: Engine, base: Base, prompts: tuple[str, ...], step: int, resolution: int
    ) -> None:
        s = self.settings
        modes = {model: model.training for model in (base.denoiser, *base.text_encoders.values())}
        base.pipeline.to(self.accelerator.device)
        for model in modes:
            model.eval()
        try:
            with engine.weights_to_use(), self.accelerator.autocast():
                sheet = draw_samples(
                    base.pipeline,
                    prompts,
                    self.out,
                    step,
                    steps=s.sample_steps,
                    guidance=s.sample_guidance,
                    resolution=resolution,
                )
        finally:
            for model, mode in modes.items():
                model.train(mode)
        self.watcher.saved(sheet, step)

    def _save(
        self,
        engine: Engine,
        components: Mapping[str, nn.Module],
        story: Story,
        facts: Mapping[str, Any],
        done: int,
        records: Records,
    ) -> None:
        """Write a checkpoint, the adapter and the picture of the losses."""
        weights = {name: p.detach() for name, p in engine.parameters.items()}
        save_checkpoint(self.out, Checkpoint(done, weights, engine.state(), facts), self.settings.keep)
        head, dialect, name = header(story, done), self.settings.dialect, self.settings.name
        with engine.weights_to_use():
            if done < self.settings.steps:
                numbered = self.out / f"{name}-{done:06}.safetensors"
                adapters.write_adapter(components, numbered, dialect, head)
            path = adapters.write_adapter(components, self.out / f"{name}.safetensors", dialect, head)
        records.draw()
        self.watcher.saved(path, done)


def _buckets(items: list[Item]) -> dict[tuple[int, int], list[int]]:
    """The numbers of the items by size, as often as an epoch shows each; prior pictures as often as the others."""
    shown = [n for n, item in enumerate(items) if not item.picture.prior for _ in range(item.picture.repeats)]
    reserve = [n for n, item in enumerate(items) if item.picture.prior]
    if reserve:
        shown += [reserve[i % len(reserve)] for i in range(max(len(shown), len(reserve)))]
    buckets: dict[tuple[int, int], list[int]] = {}
    for number in shown:
        buckets.setdefault(items[number].size, []).append(number)
    return buckets


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Take Ctrl-C and the wish of the system to stop as a wish for the next save; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

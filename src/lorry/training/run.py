"""A whole run: from a folder of pictures to a file, with everything that stands in the run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lorry.dialects import get_dialect
from lorry.errors import SettingsError
from lorry.training import adapters
from lorry.training.caches import model_hash
from lorry.training.checkpoints import check_same_run
from lorry.training.engine import Engine
from lorry.training.facts import facts_of
from lorry.training.folder import claim_folder, write_settings
from lorry.training.headers import Story
from lorry.training.loading import compute_dtype, load_base, quiet
from lorry.training.loop import Result, run_steps
from lorry.training.material import prepare_material, read_pictures
from lorry.training.objectives import get_objective
from lorry.training.optimisers import check_optimiser
from lorry.training.outputs import Outputs
from lorry.training.processes import Process, started
from lorry.training.quantizing import get_package, quantize
from lorry.training.settings import Settings, check_used
from lorry.training.sharding import share_out
from lorry.training.watching import Watcher


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
    for name in ("data", "out"):
        if not getattr(settings, name):
            raise SettingsError(f"`{name}` is not given: say which folder.")
    if not resume:
        check_used(settings)
    check_optimiser(settings)
    adapters.check_form(settings)
    if settings.dialect:
        get_dialect(settings.dialect)
    get_package(settings.quantize)
    named = replace(settings.placed(), name=settings.name or Path(settings.data).resolve().name)
    with quiet(), started(named, watcher) as process:
        return _run(process, resume)


def _run(process: Process, resume: bool) -> Result:
    settings, accelerator = process.settings, process.accelerator
    data, prior = read_pictures(process)
    checkpoint = claim_folder(process, resume=resume)
    process.watcher.prepare("models loaded", 0, 1)
    base = load_base(settings, process.device)
    objective = get_objective(base.pipeline.scheduler, settings.min_snr, settings.noise_offset)
    base_hash = model_hash(base.denoiser)
    quantize(base.denoiser, settings.quantize, compute_dtype(settings, process.device))
    if not process.is_sharded:
        base.denoiser.to(process.device)
    material = prepare_material(process, base, data, prior)
    components = adapters.put_on(base, settings)
    adapters.check_can_be_written(components, settings.dialect)
    parameters = adapters.named_parameters(components)
    if process.is_sharded:
        count = share_out(base.denoiser, parameters.values(), accelerator)
        process.watcher.note(f"FSDP: each process has its part of {count} of the base's weights.")
    for model in components.values():
        model.to(process.device)  # text encoders in training: the denoiser is there already
    process.begin_alike(parameters.values())
    engine = Engine(settings, base, objective, material, parameters, accelerator)
    facts = facts_of(process, base_hash, components, material)
    if checkpoint is not None:
        check_same_run(checkpoint, facts)
        write_settings(process)
        engine.restore(checkpoint.weights, checkpoint.state)
    story = Story(
        settings=settings,
        name=settings.name,
        base=base,
        base_hash=base_hash,
        items=material.items,
        prediction=objective.prediction,
        total_batch=process.total_batch,
        steps_per_epoch=material.order.steps_per_epoch,
        resolution=material.resolution,
    )
    outputs = Outputs(process, engine, components, story, facts)
    return run_steps(outputs, 0 if checkpoint is None else checkpoint.step)

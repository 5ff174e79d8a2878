"""What a run is fed with: pictures and captions, encoded once, and the order in which steps see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lorry.errors import DataError, SettingsError
from lorry.training.bases import Base
from lorry.training.buckets import nearest_size
from lorry.training.caches import TensorCache, model_hash
from lorry.training.data import DataSet, read_data
from lorry.training.order import Order
from lorry.training.preparing import Item, cache_captions, cache_latents, latent_key
from lorry.training.priors import draw_priors
from lorry.training.processes import Process


@final
@dataclass(frozen=True, eq=False, slots=True)
class Material:
    """What a run is fed with."""

    data: DataSet
    """The pictures that turned out to be readable, without the prior ones."""
    items: Sequence[Item]
    """Those and the prior ones, at the sizes that they are trained at."""
    order: Order
    cache: TensorCache
    text_hash: str
    """Of the text encoders, by which cached captions are found; empty where these are trained."""
    resolution: int


def read_pictures(process: Process) -> tuple[DataSet, DataSet | None]:
    """Read the folders of pictures and, where one is given, of prior pictures.

    Raises:
        DataError: there is nothing in one of them that can be trained on.
    """
    s = process.settings
    data = read_data(Path(s.data), s.trigger)
    prior = read_data(Path(s.prior), prior_weight=s.prior_weight) if s.prior else None
    for note in (*data.notes, *(prior.notes if prior else ())):
        process.watcher.note(note)
    return data, prior


def prepare_material(process: Process, base: Base, data: DataSet, prior: DataSet | None) -> Material:
    """Fill the cache, each process its share, and plan the order.

    Raises:
        SettingsError: the resolution does not fit the base.
        DataError: not one of the pictures can be read.
    """
    s, watcher = process.settings, process.watcher
    resolution, step = s.resolution or base.resolution, s.bucket_step or base.size_step
    if step % base.least_step:
        raise SettingsError(
            f"`bucket_step`: {step} is no multiple of {base.least_step}, which this base needs."
        )
    if resolution % step:
        why = "`bucket_step` asks for" if s.bucket_step else "this base needs"
        raise SettingsError(f"`resolution`: {resolution} is no multiple of {step}, which {why}.")
    prior = prior or _drawn_priors(process, base)
    cache, vae_hash = TensorCache(process.out / "cache"), model_hash(base.pipeline.vae)
    items = []
    for picture in (*data.pictures, *(prior.pictures if prior else ())):
        size = nearest_size(picture.size, resolution, step) if s.buckets else (resolution, resolution)
        if base.largest_side is not None and max(size) > base.largest_side:
            raise SettingsError(
                f"`resolution`: {resolution} makes pictures of {size[0]}x{size[1]} pixels, and the base draws sides of "
                f"at most {base.largest_side}. Give a smaller `resolution`."
            )
        items.append(Item(picture, size, latent_key(picture, size, vae_hash, flip=s.flip)))
    share, device = process.share, process.device
    cache_latents(base, items[share], cache, flip=s.flip, device=device, advance=watcher.prepare)
    text_hash = ""
    if not s.text_encoder:
        captions = sorted({"", *(item.picture.caption for item in items)})
        text_hash = " ".join(model_hash(model) for model in base.text_encoders.values())
        cache_captions(base, captions[share], cache, text_hash, device=device, advance=watcher.prepare)
    process.wait()
    items, data = _without_refused(process, items, data, cache)
    order = Order(_buckets(items), process.total_batch, s.seed)
    return Material(data, items, order, cache, text_hash, resolution)


def _drawn_priors(process: Process, base: Base) -> DataSet | None:
    s = process.settings
    if not s.prior_prompt:
        return None
    folder = process.out / "prior"
    if process.is_main:
        base.pipeline.to(process.device)
        draw_priors(
            base.pipeline,
            s.prior_prompt,
            s.prior_count,
            folder,
            seed=s.seed,
            steps=s.sample_steps,
            guidance=s.sample_guidance,
            advance=process.watcher.prepare,
        )
    process.wait()
    return read_data(folder, prior_weight=s.prior_weight)


def _without_refused(
    process: Process, items: list[Item], data: DataSet, cache: TensorCache
) -> tuple[list[Item], DataSet]:
    """Leave out the pictures that turned out to be broken; all processes find the same ones."""
    refused = {item.picture: reason for item in items if (reason := cache.find_refusal(item.key))}
    for reason in refused.values():
        process.watcher.note(f"{reason} Skipped.")
    kept = tuple(picture for picture in data.pictures if picture not in refused)
    if not kept:
        raise DataError(
            f"Not one picture of {process.settings.data} can be read: {next(iter(refused.values()))}"
        )
    return [item for item in items if item.picture not in refused], DataSet(kept, data.notes)


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

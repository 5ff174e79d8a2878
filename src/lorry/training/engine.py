"""A step: noised latents through the base with the adapter, gradients, one average over processes, one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, final

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from lorry.errors import TrainingError
from lorry.training.bases import Base, Text
from lorry.training.loading import compute_dtype
from lorry.training.material import Material
from lorry.training.objectives import Objective
from lorry.training.optimisers import make_optimiser, rate_factor, weights_to_use
from lorry.training.order import generator_of
from lorry.training.preparing import caption_key
from lorry.training.settings import Settings


class Outcome(NamedTuple):
    """What a step gave."""

    loss: float
    rate: float
    stop: bool
    """Whether a process was asked to stop."""


@final
class Engine:
    """Trains the parameters of an adapter that is on a base already."""

    def __init__(
        self,
        settings: Settings,
        base: Base,
        objective: Objective,
        material: Material,
        parameters: Mapping[str, nn.Parameter],
        accelerator: Any,
    ) -> None:
        """Make the optimiser, and the moving average where one is asked for.

        Args:
            settings: of the run.
            base: with the adapter on it.
            objective: of the base.
            material: what to train on.
            parameters: by component, path and field; those that need no gradient are kept with the others.
            accelerator: of accelerate.
        """
        self._settings, self._base, self._objective, self._material = settings, base, objective, material
        self.parameters, self._accelerator = dict(parameters), accelerator
        self._trained = [p for p in self.parameters.values() if p.requires_grad]
        self._optimiser = accelerator.prepare_optimizer(
            make_optimiser(settings, self._groups()), device_placement=False
        )
        if hasattr(self._bare_optimiser, "train"):
            self._bare_optimiser.train()
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._ema = EMAModel(self._trained, decay=settings.ema) if settings.ema else None

    @property
    def _bare_optimiser(self) -> Any:
        """What accelerate has wrapped."""
        return getattr(self._optimiser, "optimizer", self._optimiser)

    @property
    def _scaler(self) -> Any:
        """What scales the loss in float16, or None."""
        return getattr(self._accelerator, "scaler", None)

    def _groups(self) -> list[dict[str, Any]]:
        s = self._settings
        rates = {False: s.rate, True: s.rate if s.text_rate is None else s.text_rate}
        groups = []
        for in_text, rate in rates.items():
            here = [p for name, p in self.parameters.items() if name.startswith("text_encoder") == in_text]
            params = [p for p in here if p.requires_grad]
            if params:
                groups.append({"params": params, "lr": rate})
        return groups

    # --- a step -----------------------------------------------------------------------------------------------

    def step(self, number: int, stop: bool) -> Outcome:
        """Do step `number`, counted from 0.

        Args:
            number: on which alone it depends what the step sees.
            stop: whether this process was asked to stop; all processes learn of it.

        Raises:
            TrainingError: the loss or a gradient is no finite number; no parameter was changed.
        """
        factor = rate_factor(self._settings, number)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        loss, stop = self._averaged(self._gradients(number), stop)
        _check_finite(f"The loss of step {number + 1} is", loss)
        # Without a limit the norm is asked for all the same. Loss scaling itself passes over steps that overflow.
        norm = self._accelerator.clip_grad_norm_(self._trained, self._settings.clip or float("inf"))
        if self._scaler is None:
            _check_finite(f"The gradients of step {number + 1} have the norm", float(norm))
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.step(self._trained)
        return Outcome(loss, self._rates[0] * factor, stop)

    def _gradients(self, number: int) -> Tensor:
        """Leave the gradients of this process's share in the parameters; return its loss."""
        s, process = self._settings, self._accelerator.process_index
        pictures, share = self._material.order.batch(number), s.batch * s.accumulate
        total = torch.zeros((), device=self._accelerator.device)
        for first in range(process * share, (process + 1) * share, s.batch):
            places = range(first, first + s.batch)
            loss = self._loss(number, places, [pictures[place] for place in places]) / s.accumulate
            self._accelerator.backward(loss)
            total += loss.detach()
        return total

    def _averaged(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        """Average gradients, losses and the wish to stop over all processes, as one vector."""
        if self._accelerator.num_processes == 1:
            return float(loss), stop
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._trained]
        extra = torch.stack([loss.float(), loss.new_tensor(float(stop))])
        flat = torch.cat([*(g.reshape(-1) for g in gradients), extra.to(gradients[0].dtype)])
        flat = self._accelerator.reduce(flat, reduction="mean")
        for parameter, piece in zip(
            self._trained, flat[:-2].split([p.numel() for p in self._trained]), strict=True
        ):
            parameter.grad = piece.view_as(parameter)
        return float(flat[-2]), bool(flat[-1] > 0)

    def _loss(self, number: int, places: Sequence[int], pictures: Sequence[int]) -> Tensor:
        device, base = self._accelerator.device, self._base
        samples = [self._sample(number, place, pictures[i]) for i, place in enumerate(places)]
        batch = {key: torch.stack([s[key] for s in samples]).to(device) for key in _BATCHED}
        dtype = compute_dtype(self._settings, device)
        task = self._objective.task(batch["latents"], batch["noise"], batch["moment"])
        with self._compute():
            text = {
                name: t.to(device, dtype) for name, t in self._text([s["caption"] for s in samples]).items()
            }
            predicted = base.predict(task.noisy.to(dtype), task.timesteps, text, batch["places"])
        errors = (predicted.float() - task.target).square().flatten(1).mean(1)
        return (errors * task.weights * batch["weight"]).mean()

    def _compute(self) -> AbstractContextManager[Any]:
        return self._accelerator.autocast()

    def _sample(self, number: int, place: int, picture: int) -> dict[str, Any]:
        """Draw what is random about one place of a batch, always in the same order."""
        s, item = self._settings, self._material.items[picture]
        entry = self._material.cache.read(item.key)
        random = generator_of(s.seed, "sample", number, place)
        coins = torch.rand(3, generator=random, dtype=torch.float64, device="cpu")
        side = int(coins[0] * len(entry["mean"]))
        latents = entry["mean"][side].clone()
        if "deviation" in entry:
            latents += entry["deviation"][side] * torch.randn(latents.shape, generator=random, device="cpu")
        noise = torch.randn(latents.shape, generator=random, device="cpu")
        if s.noise_offset:
            noise += s.noise_offset * torch.randn(latents.shape[0], 1, 1, generator=random, device="cpu")
        return {
            "latents": latents,
            "noise": noise,
            "places": entry["places"][side],
            # The places of a batch share the moments out among them, so that each batch sees all of the noise.
            "moment": (place + coins[2]) / self._total_batch,
            "weight": torch.tensor(item.picture.weight, device="cpu"),
            "caption": "" if coins[1] < s.caption_dropout else item.picture.caption,
        }

    @property
    def _total_batch(self) -> int:
        return self._settings.batch * self._settings.accumulate * self._accelerator.num_processes

    def _text(self, captions: Sequence[str]) -> Text:
        if self._settings.text_encoder:
            return self._base.encode_text(captions)
        cache, key = self._material.cache, self._material.text_hash
        entries = [cache.read(caption_key(caption, key)) for caption in captions]
        return {name: torch.cat([entry[name] for entry in entries]) for name in entries[0]}

    # --- what is kept -----------------------------------------------------------------------------------------

    def weights_to_use(self) -> AbstractContextManager[None]:
        """Put what is to be saved and drawn with in place of what is being trained, inside the context."""
        return weights_to_use(self._bare_optimiser, self._ema, self._trained)

    def state(self) -> dict[str, Any]:
        """Return the state of the optimiser, of the moving average and of the loss scaling."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take the place of the engine whose weights and `state` these are."""
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
            self._ema.to(device=self._accelerator.device)
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])


def _check_finite(what: str, number: float) -> None:
    if not number < float("inf"):
        raise TrainingError(
            f"{what} {number}. Lower the learning rate (`rate`), or train in bf16 or float32. The checkpoints hold the "
            "state before."
        )


_BATCHED = ("latents", "noise", "places", "moment", "weight")

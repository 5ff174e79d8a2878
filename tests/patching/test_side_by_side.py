"""Layers are fused side by side on the CPU, to the same bits, and leave torch's threads as they were."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from lorry.algebra import LoraDelta
from lorry.patching import side_by_side
from lorry.patching.side_by_side import FEW, run_side_by_side
from small import changing, put, state_of

THREADS = 2


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


class Many(nn.Module):
    """Many layers of a size that torch gives to all of its threads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Linear(320, 200, dtype=torch.bfloat16) for _ in range(2 * FEW * THREADS)
        )


def loaded() -> Many:
    model = Many()
    random = torch.Generator().manual_seed(1)
    deltas = {
        f"layers.{i}": LoraDelta(
            torch.randn(4, 320, generator=random), torch.randn(200, 4, generator=random), alpha=2.0
        )
        for i in range(len(model.layers))
    }
    put(model, deltas=deltas)
    return model


def fused(model: Many) -> list[torch.Tensor]:
    with changing(model) as (state, undo):
        state.fuse(undo)
    return [layer.get_parameter("weight").detach().clone() for layer in model.layers]


def test_layers_are_each_one_threads_and_fused_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, int]] = set()
    whole = side_by_side._work

    def noted(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        seen.add((threading.current_thread().name, torch.get_num_threads()))

    monkeypatch.setattr(side_by_side, "_work", noted)
    together = fused(loaded())
    assert seen
    assert all(name.startswith("lorry: layers") and number == 1 for name, number in seen)
    seen.clear()
    monkeypatch.setattr(side_by_side, "FEW", 1 << 20)
    alone = fused(loaded())
    assert not seen
    assert all(map(torch.equal, together, alone))


def test_threads_of_torch_stay_as_many_as_they_were() -> None:
    new: list[int] = []
    run_side_by_side([lambda: torch.ones(100_000).exp()] * 100)
    assert torch.get_num_threads() == THREADS
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [THREADS]


def test_an_error_in_one_layer_is_raised_and_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded()
    before = [layer.get_parameter("weight").detach().clone() for layer in model.layers]
    pointers = [layer.get_parameter("weight").data_ptr() for layer in model.layers]
    counted = iter(range(1000))

    def low_rank(self: LoraDelta, dtype: torch.dtype) -> None:
        if next(counted) == 5:
            raise MemoryError("no room")

    monkeypatch.setattr(LoraDelta, "low_rank", low_rank)
    with pytest.raises(MemoryError, match="no room"):
        fused(model)
    assert next(counted) < len(model.layers), "the others were left out"
    assert not state_of(model).fused
    assert [layer.get_parameter("weight").data_ptr() for layer in model.layers] == pointers
    assert all(
        torch.equal(layer.get_parameter("weight"), one)
        for layer, one in zip(model.layers, before, strict=True)
    )
    assert torch.get_num_threads() == THREADS


def test_an_interruption_leaves_out_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "set_num_threads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([lambda i=i: done.append(i) for i in range(100)])
    monkeypatch.undo()
    assert len(done) < 100


def test_weights_fused_in_inference_mode_are_fit_for_gradients() -> None:
    model = loaded()
    with torch.inference_mode():
        fused(model)
    weight = model.layers[0].get_parameter("weight")
    assert not weight.is_inference()
    weight.requires_grad_(True).float().square().sum().backward()
    assert weight.grad is not None

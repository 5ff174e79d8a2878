"""Adapters whose like was planned before: the same plan comes out, unless the model is another one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lorry.adapters import Adapter
from lorry.binding import Plan, bind, carriers, index, known
from lorry.dialects import read_adapter
from lorry.errors import ShapeMismatchError, StateError, UnknownTargetError
from lorry.files import read_safetensors, write_safetensors


class Model(nn.Module):
    to_q: nn.Module

    def __init__(self, width: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, width, bias=bias)
        self.to_k = nn.Linear(8, 8)


def read(folder: Path, seed: int, **more: Tensor) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"unet.{name}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for name in ("to_q", "to_k")
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    path = write_safetensors(folder / f"{seed}.safetensors", {**tensors, **more}, {})
    return read_adapter(read_safetensors(path))


def plan(adapter: Adapter, model: nn.Module) -> tuple[Plan, bool]:
    """Plan an adapter; whether the plan was known is told too."""
    drafted = []
    original = known.remember
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorry.binding.plan.remember", lambda *given: (drafted.append(1), original(*given)))
        found = bind(adapter, {"unet": model})
    return found, not drafted


def test_a_known_plan_puts_the_new_files_tensors_where_the_first_ones_were(tmp_path: Path) -> None:
    first, was_known = plan(read(tmp_path, 0), Model())
    assert not was_known
    adapter = read(tmp_path, 1)
    second, was_known = plan(adapter, Model())
    assert was_known
    assert list(second.deltas["unet"]) == list(first.deltas["unet"])
    own = {entry.target.path: entry.delta for entry in adapter.entries}
    assert all(second.deltas["unet"][path] is own[path] for path in ("to_q", "to_k"))
    assert second.report.source.endswith("1.safetensors")
    assert (second.report.applied, second.report.key_count) == (4, 4)


def test_zeros_are_told_of_the_file_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "zeros").mkdir()
    ups = [f"unet.{name}.lora_B.weight" for name in ("to_q", "to_k")]
    zeros = read(tmp_path / "zeros", 0, **{key: torch.zeros(8, 2) for key in ups})
    assert [
        plan(one, Model())[0].report.adds_nothing for one in (read(tmp_path, 1), zeros, read(tmp_path, 2))
    ] == [
        False,
        True,
        False,
    ]
    assert plan(zeros, Model())[1]


def test_another_model_is_planned_anew(tmp_path: Path) -> None:
    plan(read(tmp_path, 0), Model())
    assert not plan(read(tmp_path, 1), Model(bias=False))[1]
    model = Model()
    del model.to_k
    model.to_v = nn.Linear(8, 8)
    with pytest.raises(UnknownTargetError, match="to_k"):
        plan(read(tmp_path, 1), model)


def test_a_layer_that_became_wider_is_found(tmp_path: Path) -> None:
    model = Model()
    plan(read(tmp_path, 0), model)
    assert plan(read(tmp_path, 1), model)[1]
    model.to_q = nn.Linear(8, 16)
    with pytest.raises(ShapeMismatchError, match="to_q"):
        plan(read(tmp_path, 2), model)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that were walked."""
    walked: list[nn.Module] = []
    monkeypatch.setattr(index, "carriers", lambda model: walked.append(model) or carriers(model))
    return walked


def test_a_model_is_walked_once(tmp_path: Path, walks: list[nn.Module]) -> None:
    first, second = Model(), Model()
    for seed, model in enumerate((first, first, second, second, first)):
        found, _ = plan(read(tmp_path, seed), model)
        assert set(found.deltas["unet"]) == {"to_q", "to_k"}
    assert walks == [first, second]


CHANGES = {
    "a neighbour has come": lambda model: setattr(model, "to_qkv", nn.Linear(8, 24)),
    "the bias has gone": lambda model: setattr(model.to_q, "bias", None),
    "a module is inside": lambda model: model.to_q.add_module("parametrizations", nn.Identity()),
    "the class is another": lambda model: setattr(model, "to_q", nn.Bilinear(8, 8, 8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_is_walked_again_where_of_a_layer(
    change: str, tmp_path: Path, walks: list[nn.Module]
) -> None:
    model = Model()
    plan(read(tmp_path, 0), model)
    plan(read(tmp_path, 1), model)
    assert walks == [model]
    CHANGES[change](model)
    with contextlib.suppress(ShapeMismatchError):
        plan(read(tmp_path, 2), model)
    assert walks == [model, model]


def test_wrappers_of_peft_are_found_in_blocks_that_a_plan_is_not_for(tmp_path: Path) -> None:
    model = Model()
    model.block = nn.Sequential(nn.Linear(8, 8))
    plan(read(tmp_path, 0), model)
    wrapper = nn.Module()
    wrapper.base_layer = model.block[0]
    model.block[0] = wrapper
    setattr(model, "peft_config", {})  # noqa: B010
    with pytest.raises(StateError, match="carries adapters that PEFT loaded"):
        plan(read(tmp_path, 1), model)


def test_what_lands_otherwise_than_it_stands_in_the_file_is_planned_each_time(tmp_path: Path) -> None:
    model = Model()
    model.to_q = nn.Conv2d(8, 8, 1)  # whose factors are given two more axes
    for seed in (0, 1):
        found, was_known = plan(read(tmp_path, seed), model)
        assert not was_known
        assert found.deltas["unet"]["to_q"].shape == (8, 8, 1, 1)

"""Combining two adapters makes what PEFT's `add_weighted_adapter` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorry.files import write_safetensors
from lorry.workflows.combine import combine_files
from lorry.workflows.recipes import Recipe
from workflows.files import full_deltas

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS = {"to_q": (16, 24), "to_k": (24, 16)}
WEIGHTS = {"one": 0.7, "two": 0.4}


class Block(nn.Module):
    """A wide and a tall linear layer, called as a UNet's are."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_block = nn.ModuleDict({n: nn.Linear(into, out) for n, (out, into) in LAYERS.items()})


def peft_model() -> Any:
    """Two LoRAs of unlike ranks and alphas."""
    import peft

    torch.manual_seed(0)
    configs = {
        name: peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LAYERS), init_lora_weights=False)
        for name, rank, alpha in (("one", 4, 6), ("two", 3, 2))
    }
    model: Any = peft.PeftModel(Block(), configs["one"], adapter_name="one")
    model.add_adapter("two", configs["two"])
    return model


def layer(model: Any, name: str) -> Any:
    return model.base_model.model.mid_block[name]


def file_of(model: Any, adapter: str, folder: Path) -> Path:
    tensors: dict[str, Tensor] = {}
    for name in LAYERS:
        module, key = layer(model, name), f"unet.mid_block.{name}"
        tensors[f"{key}.lora_down.weight"] = module.lora_A[adapter].weight.detach().clone()
        tensors[f"{key}.lora_up.weight"] = module.lora_B[adapter].weight.detach().clone()
        tensors[f"{key}.alpha"] = torch.tensor(module.scaling[adapter] * module.r[adapter])
    return write_safetensors(folder / f"{adapter}.safetensors", tensors)


@pytest.mark.parametrize(("kind", "rank"), [("cat", None), ("svd", 3)])
def test_a_sum_is_that_of_peft(kind: str, rank: int | None, tmp_path: Path) -> None:
    model = peft_model()
    options = {} if rank is None else {"svd_rank": rank, "svd_full_matrices": False}
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type=kind, **options)
    out = tmp_path / "sum.safetensors"
    combine_files([(file_of(model, a, tmp_path), w) for a, w in WEIGHTS.items()], out, Recipe(rank=rank))
    found = full_deltas(out)
    assert len(found) == len(LAYERS)
    for name in LAYERS:
        delta = next(found[key] for key in found if key.endswith(name))
        theirs = layer(model, name).get_delta_weight("sum").detach()
        assert theirs.norm() > 0.1
        torch.testing.assert_close(delta.to(theirs.dtype), theirs, rtol=1e-4, atol=1e-5)

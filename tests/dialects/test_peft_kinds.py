"""What PEFT's files hold beside factors of a layer's own: matrices for all layers, and options of the config."""

from __future__ import annotations

import pytest
import torch

from dialects.conftest import Read
from lorry.algebra import HraDelta, VeraDelta
from lorry.errors import FormatError

ROOT = "base_model.model"
VERA = {
    "base_model.vera_A": (2, 9),
    "base_model.vera_B": (10, 2),
    f"{ROOT}.a.vera_lambda_b": (8,),
    f"{ROOT}.a.vera_lambda_d": (2,),
    f"{ROOT}.b.vera_lambda_b": (10,),
    f"{ROOT}.b.vera_lambda_d": (2,),
}


def test_the_shared_matrices_of_a_vera_are_each_layers_and_counted_once(read: Read) -> None:
    adapter = read(VERA, config={"peft_type": "VERA"})
    first, second = (entry.delta for entry in adapter.entries)
    assert isinstance(first, VeraDelta)
    assert isinstance(second, VeraDelta)
    assert first.shared_a is second.shared_a
    assert (first.shape, second.shape) == ((8, -1), (10, -1))
    assert [len(entry.keys) for entry in adapter.entries] == [4, 2]


@pytest.mark.parametrize("lost", ["base_model.vera_A", "base_model.vera_B"])
def test_a_vera_without_a_shared_matrix_is_refused(lost: str, read: Read) -> None:
    with pytest.raises(FormatError, match=r"`base_model\.model\.a\.vera_lambda_b`.*save_projection=True"):
        read({key: shape for key, shape in VERA.items() if key != lost}, config={"peft_type": "VERA"})


def test_shared_matrices_that_no_layer_needs_are_unknown(read: Read) -> None:
    shapes = {
        "base_model.vera_A": (2, 9),
        f"{ROOT}.a.lora_A.weight": (2, 6),
        f"{ROOT}.a.lora_B.weight": (8, 2),
    }
    assert read(shapes).unknown == ("base_model.vera_A",)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_config_says_whether_reflections_are_made_orthogonal(orthogonal: bool, read: Read) -> None:
    adapter = read({f"{ROOT}.a.hra_u": (6, 2)}, config={"peft_type": "HRA", "apply_GS": orthogonal})
    (entry,) = adapter.entries
    assert isinstance(entry.delta, HraDelta)
    assert entry.delta.orthogonal is orthogonal
    assert entry.delta.weight(torch.eye(6)).any()

"""What is no number is refused before the work, and never written after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.runs import write_lora
from lorry.errors import FormatError, NotFiniteError, StateError
from lorry.files import read_safetensors, write_safetensors
from lorry.workflows.approximating import Approximator
from lorry.workflows.bake import bake_files
from lorry.workflows.combine import combine_files
from lorry.workflows.compare import compare_files
from lorry.workflows.convert import convert_file
from lorry.workflows.extract import Form, extract_files
from lorry.workflows.measure import measure_file
from lorry.workflows.resize import Budget, resize_file
from lorry.workflows.rules import Rule
from lorry.workflows.trade_off import preview
from models import tiny_sd_pipeline, tiny_unet
from workflows.files import kohya_file


def with_number(source: Path, key: str, number: float) -> Path:
    """A file with one number replaced."""
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(source).tensors.items()}
    found = next(name for name in tensors if key in name)
    tensors[found].view(-1)[0] = number
    return write_safetensors(source.with_name(f"wrong-{source.name}"), tensors)


def beside(wrong: Path) -> Path:
    """A file of the same layers in which all is well."""
    return kohya_file(wrong.with_name("b.safetensors"))


WORK: dict[str, Callable[[Path, Path], Any]] = {
    "combine": lambda wrong, out: combine_files(
        [(kohya_file(wrong.with_name("b.safetensors")), 1.0), (wrong, 0.5)], out
    ),
    "resize": lambda wrong, out: resize_file(wrong, out, Budget(rank=2)),
    "preview": lambda wrong, _: preview(wrong),
    "compare": lambda wrong, _: compare_files(beside(wrong), wrong),
    "measure": lambda wrong, _: measure_file(wrong),
    "approximate": lambda wrong, out: convert_file(wrong, out, "lycoris", approximator=Approximator()),
}


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("work", WORK)
def test_an_adapter_with_what_is_no_number_is_refused_by_name(
    work: str, number: float, tmp_path: Path
) -> None:
    wrong = with_number(kohya_file(tmp_path / "a.safetensors"), "attn2_to_k.lora_up", number)
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        NotFiniteError, match=r"wrong-a\.safetensors: `up` of `.*attn2_to_k` holds a NaN or an inf"
    ):
        WORK[work](wrong, out)
    assert not out.exists()


def test_it_is_not_baked_into_a_checkpoint(tmp_path: Path) -> None:
    tiny_sd_pipeline().save_pretrained(tmp_path / "base")
    wrong = with_number(write_lora(tmp_path / "a.safetensors", 1), "lora", float("nan"))
    with pytest.raises(NotFiniteError, match="holds a NaN or an infinity"):
        bake_files(tmp_path / "base", [(wrong, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_base", [True, False])
def test_a_checkpoint_with_what_is_no_number_is_refused_by_name(is_base: bool, tmp_path: Path) -> None:
    for name, wrong in (("base", is_base), ("tuned", not is_base)):
        model = tiny_unet()
        with torch.no_grad():
            model.conv_in.weight[0, 0] = float("nan") if wrong else 0.5
        model.save_pretrained(tmp_path / name)
    out = tmp_path / "out.safetensors"
    said = f"`unet.conv_in.weight` in .*{'base' if is_base else 'tuned'} holds a NaN or an infinity"
    with pytest.raises(NotFiniteError, match=said):
        extract_files(tmp_path / "base", tmp_path / "tuned", out, Form(rank=2))
    assert not out.exists()


def test_numbers_that_the_dtype_does_not_hold_are_not_written(tmp_path: Path) -> None:
    source = with_number(kohya_file(tmp_path / "a.safetensors"), "lora_up", 1e6)
    out = tmp_path / "out.safetensors"
    for work in (
        lambda dtype: combine_files([(source, 1.0)], out, dtype=dtype),
        lambda dtype: resize_file(source, out, Budget(rank=4), dtype=dtype),
    ):
        with pytest.raises(
            NotFiniteError, match=r"`up` of `.*` would hold a NaN or an infinity in float16.*bfloat16"
        ):
            work("float16")
        assert not out.exists()
        work("bfloat16")
        assert all(bool(tensor.isfinite().all()) for tensor in read_safetensors(out).tensors.values())
        out.unlink()


def test_an_alpha_that_float32_does_not_hold_is_neither_written_nor_read(tmp_path: Path) -> None:
    source, out = kohya_file(tmp_path / "a.safetensors"), tmp_path / "out.safetensors"
    with pytest.raises(
        NotFiniteError, match=r"the alpha of `.*` would be .*e\+300, which float32 does not hold"
    ):
        combine_files([(source, 1e300)], out)
    assert not out.exists()
    tensors = read_safetensors(source).tensors
    far = tmp_path / "far.safetensors"
    write_safetensors(far, {k: t.double() * 1e300 if k.endswith(".alpha") else t for k, t in tensors.items()})
    with pytest.raises(FormatError, match=r"expected an alpha that is finite and not zero, got .*e\+300"):
        combine_files([(far, 1.0)], out)


@pytest.mark.parametrize("rank", [0.0, -1.0, 2.5])
def test_a_rule_whose_number_is_no_rank_is_refused(rank: float) -> None:
    for make in (lambda rules: Form(rank=4, rules=rules), lambda rules: Budget(rank=4, rules=rules)):
        with pytest.raises(StateError, match=f"`to_q`: expected a rank of 1 or more, got {rank:g}"):
            make((Rule("to_q", (rank,)),))


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_rule_whose_number_is_none_is_refused(number: str) -> None:
    with pytest.raises(StateError, match="`to_q`: expected finite numbers"):
        Rule.parse(f"to_q={number}")

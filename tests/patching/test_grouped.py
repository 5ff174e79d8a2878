"""The products of many layers in one launch: the kernel, run by Triton's interpreter where Triton is installed."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lorry.algebra import LowRank
from lorry.patching import grouped
from lorry.patching.grouped import Grouped
from small import Small, changing, put, small_input
from snapshots import check_same, snapshot

KERNEL = """
import torch
from lorry.patching.grouped import trial
print(trial(torch.device("cpu"), torch.float16))
"""


COMPILE = """
import triton
import triton.language as tl
from lorry.patching.grouped_kernel import COLUMNS, RANKS, ROWS, _kernel
types = {"layers": "*i64", "pairs": "*i64", "scales": "*fp32", "tiles": "*i32"}
for dtype in (tl.float16, tl.bfloat16):
    constants = {"dtype": dtype, "height": ROWS, "width": COLUMNS, "depth": RANKS}
    source = triton.compiler.ASTSource(
        fn=_kernel, signature={**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants
    )
    for capability in (75, 80, 86, 89, 90, 100):
        triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", capability, 32))
"""
no_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here")


@no_triton
def test_the_kernel_is_compiled_for_every_kind_of_gpu(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_kernel_names_nothing_that_triton_cannot_compile() -> None:
    tree = ast.parse((Path(grouped.__file__).parent / "grouped_kernel.py").read_text())
    kernel = next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "_fuse")
    notes = [ast.unparse(argument.annotation) for argument in kernel.args.args if argument.annotation]
    assert {note.partition(".")[0] for note in notes} == {"tl"}  # it looks names in the signature up, too


@no_triton
def test_the_kernel_rounds_the_sum_of_all_adapters_once() -> None:
    run = subprocess.run(
        [sys.executable, "-c", KERNEL],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) < 0.01


def fuse(model: Small, **options: object) -> None:
    with changing(model) as (state, undo):
        state.fuse(undo, **options)  # type: ignore[arg-type]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take linear layers on the CPU too, and compute them as the kernel does; how many layers each launch had."""
    seen: list[int] = []

    def run(jobs: list[grouped.Job], device: torch.device, dtype: torch.dtype) -> None:
        seen.append(len(jobs))
        for start, pairs, result in jobs:
            change = sum(scale * (pair.up.double() @ pair.down.double()) for pair, scale in pairs)
            result.copy_(start.double() + change)

    monkeypatch.setattr(Grouped, "takes_layers_of", lambda self, device: False)
    monkeypatch.setattr(Grouped, "takes", lambda self, start, pairs, result: start.dim() == 2)
    monkeypatch.setattr(grouped, "_run", run)
    return seen


def test_a_fuse_is_one_launch_and_comes_off_bit_for_bit(launches: list[int]) -> None:
    model, x = Small(), small_input()
    put(model, "a", 0.5, seed=1)
    put(model, "b", -1.0, seed=2)
    before, expected = snapshot(model), model(x)
    fuse(model)
    assert launches == [sum(p.dim() == 2 for n, p in model.named_parameters() if n.endswith("weight"))]
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert not torch.equal(model(x), Small()(x))
    with changing(model) as (state, undo):
        state.unfuse(undo)
    check_same(snapshot(model), before)


def test_originals_that_are_kept_elsewhere_are_not_held_for_the_launch(launches: list[int]) -> None:
    model = Small()
    put(model, "a")
    fuse(model, originals="cpu")
    assert not launches


def test_a_launch_that_fails_leaves_the_weights_as_they_were(
    launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    model = Small()
    put(model, "a")
    before = snapshot(model)
    monkeypatch.setattr(grouped, "_run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fuse(model)
    check_same(snapshot(model), before)


def test_a_launch_is_made_with_the_device_of_its_tensors_as_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    current: list[Tensor] = []

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.clear()

    def launch(*_: object) -> None:
        assert current == [start]
        launched.append(True)

    start, launched = torch.zeros(4, 6), list[bool]()
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    kernel = SimpleNamespace(ROWS=2, COLUMNS=2, launch=launch)
    monkeypatch.setitem(sys.modules, "lorry.patching.grouped_kernel", kernel)
    monkeypatch.setattr(grouped, "DTYPES", {torch.float32: "float32"})
    together = Grouped()
    together.add(start, [(LowRank(torch.ones(1, 6), torch.ones(4, 1), 1.0), 0.5)], torch.empty(4, 6))
    together.run()
    assert launched


def test_without_triton_layers_are_fused_one_by_one_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "lorry.patching.grouped_kernel", None)
    grouped._works.cache_clear()
    for _ in range(2):
        assert not grouped._works(torch.device("cpu"), torch.float16)
    assert [record.message.split(":")[0] for record in caplog.records] == ["Fusing goes layer by layer"]
    grouped._works.cache_clear()

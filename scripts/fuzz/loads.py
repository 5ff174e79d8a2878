"""Fuzz whole loads: `python -m scripts.fuzz.loads -runs=100000` (the options are libFuzzer's).

Each input spoils one of two dozen adapter files, of all families and several spellings, in up to four ways: keys
renamed, dropped or doubled, tensors transposed, cut, cast or made infinite, metadata replaced, bytes overwritten, the
end cut off. Loading it must end within the time limit of libFuzzer (`-timeout`), in an adapter or in an error of
lorry's own; after an error, and after unloading what was loaded, the pipeline's modules and weights are what they were.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import torch
from torch import Tensor

with atheris.instrument_imports(include=["lorry.dialects", "lorry.binding", "lorry.algebra"]):
    from lorry.errors import LorryError
    from lorry.files import write_safetensors
    from lorry.pipelines import LoraLoaderMixin  # and with it all that is instrumented

from scripts.fuzz.seeds import seeds, tiny_pipeline

Tensors = dict[str, Tensor]

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.complex64,
)
TEXTS = (
    "",
    "{",
    "[]",
    "[1]",
    '{"unet.r": "x"}',
    '{"r": 1e999}',
    '{"unet.rank_pattern": {"(": 3}}',
    "[" * 9999,
    "null",
)
METADATA = (
    "lora_adapter_metadata",
    "ss_network_args",
    "ss_network_dim",
    "ss_network_alpha",
    "unet",
    "modelspec.architecture",
)
ODD = (float("nan"), float("inf"), -1.0, 0.0, 1e38)


@torch.no_grad()
def spoil(given: atheris.FuzzedDataProvider, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Change one thing about a file, in place."""
    key = given.PickValueInList(sorted(tensors)) if tensors else "x"
    tensor = tensors.get(key, torch.ones(2))
    match given.ConsumeIntInRange(0, 9):
        case 0:
            tensors.pop(key, None)
        case 1:
            at = given.ConsumeIntInRange(0, len(key))
            tensors[key[:at] + given.ConsumeUnicodeNoSurrogates(3) + key[at + 1 :]] = tensors.pop(key, tensor)
        case 2:
            other = given.PickValueInList(sorted(tensors)) if tensors else key
            tensors[key] = tensors.get(other, tensor)
        case 3:
            tensors[key] = tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor[None]
        case 4:
            tensors[key] = tensor.flatten()[: given.ConsumeIntInRange(0, 9)].clone()
        case 5:
            tensors[key] = tensor.reshape((*tensor.shape, *[1] * given.ConsumeIntInRange(0, 5)))
        case 6:
            tensors[key] = tensor.to(given.PickValueInList(list(DTYPES)))
        case 7:
            tensors[key] = torch.full_like(tensor.double(), given.PickValueInList(list(ODD)))
        case 8:
            metadata[given.PickValueInList(list(METADATA))] = given.PickValueInList(list(TEXTS))
        case _:
            shape = [given.ConsumeIntInRange(0, 9) for _ in range(given.ConsumeIntInRange(0, 4))]
            tensors[f"{key.rpartition('.')[0]}.{given.PickValueInList(list(SUFFIXES))}"] = torch.ones(shape)


SUFFIXES = sorted({key.rpartition(".")[2] for _, tensors, _ in seeds() for key in tensors})


def checker(pipeline: LoraLoaderMixin, path: Path) -> Callable[[bytes], None]:
    """Return what atheris calls with each input."""
    chosen = seeds()
    before = [(module, type(module), sorted(vars(module))) for module in pipeline.unet.modules()]
    weights = {
        name: (tensor, tensor.clone()) for name, tensor in pipeline.unet.state_dict(keep_vars=True).items()
    }

    def check(data: bytes) -> None:
        given = atheris.FuzzedDataProvider(data)
        _, tensors, metadata = given.PickValueInList(chosen)
        tensors, metadata = dict(tensors), dict(metadata)
        for _ in range(given.ConsumeIntInRange(0, 4)):
            spoil(given, tensors, metadata)
        write_safetensors(path, tensors, metadata)
        if given.ConsumeBool():
            _spoil_bytes(given, path)
        try:
            pipeline.load_lora_weights(path, strict=given.ConsumeBool())
        except LorryError:
            pass
        else:
            pipeline.unload_lora_weights()
        for module, cls, attributes in before:
            if type(module) is not cls or sorted(vars(module)) != attributes:
                raise AssertionError(f"a {cls.__name__} is not what it was")
        now = pipeline.unet.state_dict(keep_vars=True)
        for name, (tensor, value) in weights.items():
            if now[name] is not tensor or not torch.equal(tensor, value):
                raise AssertionError(f"{name} is not what it was")

    return check


def _spoil_bytes(given: atheris.FuzzedDataProvider, path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = given.ConsumeIntInRange(0, len(content))
    if given.ConsumeBool():
        new = given.ConsumeBytes(8)
        content[at : at + len(new)] = new
    else:
        del content[at:]
    path.write_bytes(content)


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    options = [*sys.argv[1:], "-len_control=0", "-max_len=200"]
    atheris.Setup([sys.argv[0], *options], checker(tiny_pipeline(), Path(folder.name) / "fuzzed.safetensors"))
    atheris.Fuzz()

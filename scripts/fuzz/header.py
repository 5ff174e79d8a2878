"""Fuzz the header parser: `python -m scripts.fuzz.header -runs=1000000` (the options are libFuzzer's).

Whatever the bytes, `parse_header` must return a layout whose tensors fill the data, or raise `BrokenFileError`. Half of
the inputs are bytes as the fuzzer makes them, half are headers that are right but for one thing.
"""

from __future__ import annotations

import json
import sys

import atheris

with atheris.instrument_imports(include=["lorry.files._layout"]):
    from lorry.errors import BrokenFileError
    from lorry.files._layout import DTYPES, LENGTH_BYTES, parse_header


def check(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data)
    header, size = _structured(given) if given.ConsumeBool() else _raw(given)
    try:
        layout = parse_header(header, size, "fuzzed")
    except BrokenFileError:
        return
    said = json.loads(header)
    if layout.metadata != said.pop("__metadata__", {}) or [span.key for span in layout.spans] != list(said):
        raise AssertionError(f"{layout} of {header!r}")
    filled = sum(span.stop - span.start for span in layout.spans)
    if layout.data_start + filled != size:
        raise AssertionError(f"the tensors fill {filled} bytes of {size - layout.data_start}")


def _raw(given: atheris.FuzzedDataProvider) -> tuple[bytes, int]:
    beyond = given.ConsumeIntInRange(0, 64)
    header = given.ConsumeBytes(sys.maxsize)
    return header, LENGTH_BYTES + len(header) + beyond


def _structured(given: atheris.FuzzedDataProvider) -> tuple[bytes, int]:
    described: dict[str, object] = {}
    if given.ConsumeBool():
        described["__metadata__"] = given.PickValueInList([{}, {"a": "b"}, {"a": "}\n"}, {"a": {}}, [], "{"])
    at = 0
    for number in range(given.ConsumeIntInRange(0, 4)):
        dtype = given.PickValueInList(list(DTYPES))
        shape = [given.ConsumeIntInRange(0, 4) for _ in range(given.ConsumeIntInRange(0, 3))]
        size = DTYPES[dtype].itemsize
        for axis in shape:
            size *= axis
        described[f"k{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if given.ConsumeBool():
        _spoil(given, described)
    compact = given.ConsumeBool()
    header = json.dumps(described, separators=(",", ":") if compact else None).encode()
    return header, LENGTH_BYTES + len(header) + at


def _spoil(given: atheris.FuzzedDataProvider, described: dict[str, object]) -> None:
    value = given.PickValueInList(
        [
            None,
            True,
            1.5,
            -1,
            2**63,
            2**70,
            "F32",
            [],
            {},
            [[]],
            "\ud800",
            given.ConsumeInt(8),
            [given.ConsumeInt(9)],
        ]
    )
    name = given.PickValueInList([*described, "__metadata__", "x"])
    place = described.get(name)
    if isinstance(place, dict) and given.ConsumeBool():
        place[given.PickValueInList(["dtype", "shape", "data_offsets"])] = value
    else:
        described[name] = value


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()

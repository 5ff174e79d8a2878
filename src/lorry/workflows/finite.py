"""Whether there are numbers to compute with: of what is read before the work, and of what is written after it."""

from __future__ import annotations

import os

from lorry.adapters import Adapter
from lorry.dialects import read_adapter
from lorry.errors import NotFiniteError
from lorry.files import read_adapter_file
from lorry.patching import find_not_finite, is_strength


def read_finite(source: str | os.PathLike[str]) -> Adapter:
    """Read an adapter that is to be computed with.

    Raises:
        NotFiniteError: a tensor of it holds a NaN or an infinity.
    """
    adapter = read_adapter(read_adapter_file(source))
    check_read(adapter)
    return adapter


def check_read(adapter: Adapter) -> None:
    """Raise where an adapter cannot be computed with.

    Raises:
        NotFiniteError: a tensor of it holds a NaN or an infinity.
    """
    if (found := _find_not_finite(adapter)) is not None:
        raise NotFiniteError(
            f"{adapter.source}: `{found[1]}` of `{found[0]}` holds a NaN or an infinity, expected finite numbers. Its "
            "training went wrong, or the file is damaged. Take an earlier save of it."
        )


def check_made(adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """Raise where an adapter that was made of finite numbers has others, before it is written.

    Raises:
        NotFiniteError: a number is beyond what the dtype to write in holds, or an alpha beyond float32.
    """
    if (found := _find_not_finite(adapter)) is not None:
        raise NotFiniteError(
            f"{path}: `{found[1]}` of `{found[0]}` would hold a NaN or an infinity in {found[2]}, and nothing was "
            "written. Lower the factors, or write another dtype (`--dtype bfloat16` or `float32`)."
        )
    for entry in adapter.entries:
        alpha = entry.delta.rank_scale * (entry.delta.rank or 1)
        if not is_strength(alpha):
            raise NotFiniteError(
                f"{path}: the alpha of `{entry.target}` would be {alpha:g}, which float32 does not hold, and nothing "
                "was written. Lower the factors."
            )


def _find_not_finite(adapter: Adapter) -> tuple[str, str, str] | None:
    """Return the target, the name and the dtype of a tensor that is not finite, or None."""
    deltas = {str(entry.target): entry.delta for entry in adapter.entries}
    found = find_not_finite(deltas)
    if found is None:
        return None
    target, name = found
    return target, name, str(deltas[target].tensors()[name].dtype).removeprefix("torch.")

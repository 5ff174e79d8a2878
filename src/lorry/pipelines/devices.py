"""The device that a user names."""

from __future__ import annotations

import torch

from lorry.errors import StateError


def usable_device(device: torch.device | str | int) -> torch.device:
    """Return a device that holds tensors on this machine, as these name it: "cuda" has a number then.

    Args:
        device: a device, its name, or its number.

    Raises:
        StateError: there is no such device here, or it holds no numbers (`meta`).
    """
    try:
        found = torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise StateError(
            f"`device`: {device!r} cannot be used on this machine: {str(error).splitlines()[0]}. Expected one that is "
            "here, such as 'cpu'."
        ) from error
    if found.type == "meta":
        raise StateError("`device`: 'meta' holds no numbers. To park adapters, pass 'cpu'.")
    return found

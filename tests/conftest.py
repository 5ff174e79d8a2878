"""What every test gets: types checked at run time, few threads, fixed seeds, no network."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from beartype import BeartypeConf
from beartype.claw import beartype_packages

# Annotations are checked on every call in the rooms that compute and parse. The rooms that change or run models are
# left out: torch.compile traces their functions. An int is taken where a float is expected. LORRY_TYPECHECK=0 turns
# it off.
CHECKED_ROOMS = [
    "lorry.names",
    "lorry.prompts",
    "lorry.algebra",
    "lorry.adapters",
    "lorry.dialects",
    "lorry.files",
    "lorry.binding",
]
if os.environ.get("LORRY_TYPECHECK", "1") != "0":
    beartype_packages(CHECKED_ROOMS, conf=BeartypeConf(is_pep484_tower=True))

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

# The same examples on every run; a failure is found again by running the test again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of samples and headers that may lie beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder `shared` beside the checkout")
    return SHARED


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class NetworkError(AssertionError):
    """A test tried to reach another machine."""


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to other machines fail; servers that a test starts on this one can be reached."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("localhost", "127.0.0.1", "::1"):
            self.close()
            raise NetworkError(f"a test tried to connect to {address!r}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", guarded)

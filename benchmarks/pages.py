"""Where the pages with the figures go."""

from __future__ import annotations

import argparse
from pathlib import Path


def page_path(text: str) -> Path:
    """Read `--out` at once, not after minutes of measuring.

    Raises:
        ArgumentTypeError: a folder has this name.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{path} is a folder: expected a page to write, as {path / 'page.md'}"
        )
    return path

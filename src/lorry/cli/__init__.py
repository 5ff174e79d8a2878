"""The command line. Torch and diffusers are imported inside the commands, so that `lorry --help` is quick."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command that the command line names. Ctrl-C ends it with exit code 130, while it still starts too."""
    try:
        from lorry.cli.app import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()

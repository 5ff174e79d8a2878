"""The command line. Torch and diffusers are imported inside the commands, so that `lorry --help` is quick."""

from lorry.cli.app import main

__all__ = ["main"]

"""`lorry demo`: what adapters do to pictures, and the proof that they come off again."""

from lorry.cli.demo.command import run_demo

__all__ = ["run_demo"]

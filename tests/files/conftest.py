"""Fixtures of this room's tests."""

from files.hub_server import fake_hub

__all__ = ["fake_hub"]

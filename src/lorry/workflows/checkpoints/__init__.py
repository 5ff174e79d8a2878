"""Whole models on the disk: folders in diffusers' layout and single files, read one tensor at a time."""

from lorry.workflows.checkpoints.checkpoint import Checkpoint, Place, Reader
from lorry.workflows.checkpoints.opening import open_checkpoint
from lorry.workflows.checkpoints.skeleton import skeleton_of

__all__ = ["Checkpoint", "Place", "Reader", "open_checkpoint", "skeleton_of"]

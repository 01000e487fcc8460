"""Trained networks made fast, and exported to other runtimes."""

from .fusion import fuse

__all__ = ['fuse']

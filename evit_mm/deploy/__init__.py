"""Trained networks made fast, and exported to other runtimes."""

from .fusion import fuse, fuse_detector

__all__ = ['fuse', 'fuse_detector']

"""Fusion of trained networks for fast inference, and export to other runtimes."""

from .fusion import fuse, fuse_detector

__all__ = ['fuse', 'fuse_detector']

"""Folders for the Hugging Face hub: written from a config and a checkpoint, and read safely."""

from .publishing import publish
from .reading import load_published

__all__ = ['load_published', 'publish']

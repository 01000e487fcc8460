"""Attention maps of each head on an image, and the similarity of the heads.

The EfficientViT paper motivates its cascade with the redundancy of attention heads (arXiv
2305.07027: "the attention maps share high similarities across heads"). This package draws and
measures this similarity for a trained model.
"""

from .pictures import visualize_attention

__all__ = ['visualize_attention']

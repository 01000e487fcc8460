"""What each head of each cascade attends to on an image, and how alike the heads are.

The paper argues for its cascade with the redundancy of attention heads (arXiv 2305.07027: "the
attention maps share high similarities across heads"). Here that is looked at, and measured, on
one's own model.
"""

from .pictures import visualize_attention

__all__ = ['visualize_attention']

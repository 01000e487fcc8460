"""What each head of each cascade attends to on an image, and how alike the heads are.

The paper argues for its cascade with the redundancy of attention heads (arXiv 2305.07027: "the
attention maps share high similarities across heads"). Here that is looked at, and measured, on
one's own model.
"""

from .maps import (
    BlockAttention,
    attention_cosine,
    attention_divergence,
    attention_of_heads,
    given,
    look,
    output_similarity,
    received,
    similarities,
)
from .run import load_backbone, network_input, visualize_attention

__all__ = [
    'BlockAttention',
    'attention_cosine',
    'attention_divergence',
    'attention_of_heads',
    'given',
    'load_backbone',
    'look',
    'network_input',
    'output_similarity',
    'received',
    'similarities',
    'visualize_attention',
]

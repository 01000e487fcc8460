"""Read, recognise, fit, convert and write checkpoints.

No function unpickles arbitrary objects. Importing this package registers the initializer that the
networks use, :class:`~evit_mm.checkpoint.CheckedPretrained`.
"""

from ..models.attention import fit_windows, resize_attention_biases
from .allowed_types import allow_mmengine_types
from .contents import DERIVED, extract_state_dict, metadata_of, plain_weights_of, tensors_of
from .fitting import (
    CheckedPretrained,
    check_state_dict,
    fit_state_dict,
    load_pretrained,
    translate_names,
)
from .sources import check_source, read_checkpoint
from .writing import write_checkpoint

__all__ = [
    'DERIVED',
    'CheckedPretrained',
    'allow_mmengine_types',
    'check_source',
    'check_state_dict',
    'extract_state_dict',
    'fit_state_dict',
    'fit_windows',
    'load_pretrained',
    'metadata_of',
    'plain_weights_of',
    'read_checkpoint',
    'resize_attention_biases',
    'tensors_of',
    'translate_names',
    'write_checkpoint',
]

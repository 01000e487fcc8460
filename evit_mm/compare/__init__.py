"""The comparison: several backbones on one data set under one budget, in one table."""

from .budget import DEFAULT_MODELS, Budget, available_models
from .collect import collect
from .runs import compare

__all__ = ['DEFAULT_MODELS', 'Budget', 'available_models', 'collect', 'compare']

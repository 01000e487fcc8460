"""The comparison: several backbones on one data set under one budget, in one table."""

from .budget import Budget, available_models
from .collect import collect
from .runs import compare

__all__ = ['Budget', 'available_models', 'collect', 'compare']

"""The comparison: several backbones, or recipes, on one data set under one budget, in one table."""

from .budget import DEFAULT_MODELS, Budget, available_models
from .collect import collect
from .recipes import RECIPES
from .runs import compare

__all__ = ['DEFAULT_MODELS', 'RECIPES', 'Budget', 'available_models', 'collect', 'compare']

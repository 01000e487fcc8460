"""Comparison of backbones or recipes on one data set with the same budget."""

from .budget import DEFAULT_MODELS, Budget, available_models
from .collect import collect
from .recipes import RECIPES
from .runs import compare

__all__ = ['DEFAULT_MODELS', 'RECIPES', 'Budget', 'available_models', 'collect', 'compare']

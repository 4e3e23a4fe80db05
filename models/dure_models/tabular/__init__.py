"""Tabular classifier for rare events: one row, one yes or no."""

from dure_models.tabular.model import TabularClassifier
from dure_models.tabular.options import Derivation, DerivedInput, TabularOptions

__all__ = ["Derivation", "DerivedInput", "TabularClassifier", "TabularOptions"]

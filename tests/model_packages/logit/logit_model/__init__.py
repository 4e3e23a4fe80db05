"""Logistic regression: one weight a number column, for an integer target with range [0, 1]."""

from logit_model.model import Logit

__all__ = ["Logit"]

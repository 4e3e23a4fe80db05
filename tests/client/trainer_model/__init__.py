"""A model package for tests of the trainer process. See model.py."""

from .model import LinearModel as LinearModel

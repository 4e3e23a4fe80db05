"""A model of any size that learns nothing: what `dure bench round` sends through a round in place of a real one."""

from dure_lab.no_training.model import NoTraining

__all__ = ["NoTraining"]

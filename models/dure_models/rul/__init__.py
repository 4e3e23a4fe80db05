"""Remaining-useful-life regressor: windows of sensor rows, standardised per operating condition."""

from dure_models.rul.model import RemainingUsefulLife
from dure_models.rul.options import RulOptions

__all__ = ["RemainingUsefulLife", "RulOptions"]

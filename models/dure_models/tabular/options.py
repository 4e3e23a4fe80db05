"""What a consortium can choose about the tabular classifier."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from dure_models.interface import ModelOptions


class Derivation(StrEnum):
    """How a derived input is made of two number columns."""

    DIFFERENCE = "difference"
    PRODUCT = "product"


class DerivedInput(ModelOptions):
    """A physically meant input computed from two feature columns, such as power = torque x speed.

    `range` is where its values matter, in the columns' units; values beyond are cut to it. Without one it follows from
    the columns' own ranges, which is often much wider than what occurs.
    """

    name: str
    derivation: Derivation
    left: str
    right: str
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _range_has_width(self) -> Self:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"derived input {self.name!r}: the range needs minimum < maximum")
        return self


class TabularOptions(ModelOptions):
    """Options of the model `tabular`."""

    derived: tuple[DerivedInput, ...] = ()
    num_bins: int = Field(default=16, ge=2, le=64, description="pieces of the piecewise-linear code of each number")
    hidden: int = Field(default=64, ge=1, le=4096, description="width of both hidden layers")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    positive_weight: float = Field(default=1.0, gt=0, description="how much more an event's loss counts")

"""What a consortium can choose about the tabular classifier."""

from enum import StrEnum

from pydantic import Field

from dure_models.interface import ModelOptions


class Derivation(StrEnum):
    """How a derived input is made of two number columns."""

    DIFFERENCE = "difference"
    PRODUCT = "product"


class DerivedInput(ModelOptions):
    """A physically meant input computed from two feature columns, such as power = torque x speed."""

    name: str
    derivation: Derivation
    left: str
    right: str


class TabularOptions(ModelOptions):
    """Options of the model `tabular`."""

    derived: tuple[DerivedInput, ...] = ()
    num_bins: int = Field(default=16, ge=2, le=64, description="pieces of the piecewise-linear code of each number")
    hidden: int = Field(default=64, ge=1, le=4096, description="width of both hidden layers")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    positive_weight: float = Field(default=1.0, gt=0, description="how much more an event's loss counts")

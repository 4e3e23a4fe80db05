"""What a consortium can choose about the remaining-useful-life regressor."""

from pydantic import Field

from dure_models.interface import ModelOptions


class RulOptions(ModelOptions):
    """Options of the model `rul`."""

    window: int = Field(default=30, ge=1, le=1024, description="rows a prediction looks back on, the last included")
    cap: float = Field(default=125.0, gt=0, description="longer remaining life counts as this, in the target's unit")
    conditions: tuple[tuple[float, ...], ...] = Field(
        default=(), description="operating points: a value for each condition column; rows go to the nearest"
    )
    channels: int = Field(default=32, ge=1, le=1024)
    hidden: int = Field(default=64, ge=1, le=4096)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    train_stride: int = Field(default=2, ge=1, description="every so many rows a training example ends")
    validation_stride: int = Field(default=5, ge=1)

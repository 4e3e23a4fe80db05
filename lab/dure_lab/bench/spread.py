"""A measured figure and its scatter."""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

_DIGITS = 5


class Spread(BaseModel):
    """Median, quartiles and extremes of a figure over the repetitions, to five significant digits.

    With fewer than four repetitions the quartiles are the extremes.
    """

    model_config = ConfigDict(frozen=True)

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        low, high = min(values), max(values)
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 3 else (low, None, high)
        return cls(
            median=significant(statistics.median(values)),
            lower_quartile=significant(quartiles[0]),
            upper_quartile=significant(quartiles[2]),
            minimum=significant(low),
            maximum=significant(high),
        )


def significant(value: float) -> float:
    """The value to five significant digits."""
    return float(f"{value:.{_DIGITS}g}")

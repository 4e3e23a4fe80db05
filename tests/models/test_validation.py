"""A firm's table against the contract: every problem at once, each with what to do."""

import polars as pl
import pytest

from dure_models.errors import DataContractError, ProblemKind
from dure_models.validation import conform
from tests.models.samples import PRESS

GOOD = {"heat": [1.0, 2.0], "speed": [1.0, 2.0], "grade": ["a", "b"], "failed": [0, 1]}


def problems_of(**columns):
    values = {**GOOD, **columns}
    with pytest.raises(DataContractError) as caught:
        conform(PRESS, pl.DataFrame({name: column for name, column in values.items() if column is not None}))
    return {(problem.kind, problem.column) for problem in caught.value.problems}, str(caught.value)


def test_a_good_table_comes_back_in_the_contracts_order_and_types_without_other_columns():
    table = pl.DataFrame({**GOOD, "extra": [1, 2], "speed": ["1", "2.5"]}).select(
        "extra", "failed", "grade", "speed", "heat"
    )
    kept = conform(PRESS, table)
    assert kept.columns == ["heat", "speed", "grade", "failed"]
    assert kept["speed"].to_list() == [1.0, 2.5]


CASES = {
    "a missing column": ({"heat": None}, ProblemKind.MISSING_COLUMN, "heat", "under [columns] in data.toml"),
    "words for numbers": ({"heat": ["warm", "hot"]}, ProblemKind.WRONG_TYPE, "heat", "must be of type float"),
    "decimal commas": (
        {"heat": ["1,5", "2"]},
        ProblemKind.WRONG_TYPE,
        "heat",
        "'1,5': set decimal_comma = true",
    ),
    "halves for integers": ({"failed": [0.5, 1.0]}, ProblemKind.WRONG_TYPE, "failed", "must be of type integer"),
    "an empty cell": ({"heat": [None, 1.0]}, ProblemKind.MISSING_VALUES, "heat", "lacks 1 of 2"),
    "a NaN": ({"heat": [float("nan"), 1.0]}, ProblemKind.MISSING_VALUES, "heat", "lacks 1 of 2"),
    "Celsius for Kelvin": ({"heat": [1.0, -5.0]}, ProblemKind.OUT_OF_RANGE, "heat", "check its unit"),
    "an unknown grade": ({"grade": ["a", "z"]}, ProblemKind.UNKNOWN_CATEGORY, "grade", "'z'"),
}


@pytest.mark.parametrize(("columns", "kind", "column", "said"), CASES.values(), ids=CASES)
def test_a_problem_is_named_with_its_column_and_remedy(columns, kind, column, said):
    found, text = problems_of(**columns)
    assert (kind, column) in found
    assert said in text


def test_all_problems_are_told_at_once():
    found, _ = problems_of(heat=None, speed=[1.0, 99.0], grade=["a", "z"])
    assert {column for _, column in found} == {"heat", "speed", "grade"}


def test_a_table_without_rows_is_refused():
    with pytest.raises(DataContractError, match="no rows"):
        conform(PRESS, pl.DataFrame(GOOD).head(0))

"""What a job was worth to a firm: which model it keeps, and whether its test rows agree."""

import pytest

from dure_client.jobs.results import JobResult, Keeps, ModelReport

Values = tuple[float | None, float | None]
"""On validation and on test rows."""


def result(own: Values, federated: Values, *, higher: bool) -> JobResult:
    reports = [ModelReport(validation={"m": validation}, test={"m": test}) for validation, test in (own, federated)]
    return JobResult(
        job="job-1",
        num_train=10,
        num_validation=10,
        num_test=10,
        primary_metric="m",
        higher_is_better=higher,
        alone=reports[0],
        federated=reports[1],
    )


@pytest.mark.parametrize(
    ("own", "federated", "higher", "keeps", "other_way_round"),
    [
        pytest.param((0.5, 0.5), (0.6, 0.6), True, Keeps.FEDERATED, False, id="federated on both"),
        pytest.param((0.6, 0.38), (0.5, 0.42), True, Keeps.ALONE, True, id="own, and worse on test"),
        pytest.param((5.0, 5.0), (6.0, 6.0), False, Keeps.ALONE, False, id="an error, own on both"),
        pytest.param((6.0, 5.0), (5.0, 6.0), False, Keeps.FEDERATED, True, id="an error, federated, worse on test"),
        pytest.param((0.6, 0.5), (0.5, 0.5), True, Keeps.ALONE, False, id="alike on test"),
        pytest.param((0.6, None), (0.5, 0.9), True, Keeps.ALONE, False, id="not defined on test"),
        pytest.param((None, 0.6), (0.5, 0.5), True, Keeps.FEDERATED, True, id="not defined on validation"),
    ],
)
def test_validation_rows_decide_and_test_rows_may_disagree(
    own: Values,
    federated: Values,
    higher: bool,
    keeps: Keeps,
    other_way_round: bool,
) -> None:
    made = result(own, federated, higher=higher)
    assert (made.keeps, made.is_other_way_round_on_test) == (keeps, other_way_round)

"""The job file: canonical, self-checking, and another digest for another byte."""

import json

import pytest

from dure_protocols.errors import IdentityError
from dure_protocols.job import JobFile, JobFileError

VALUES = {
    "id": "milling-1",
    "title": "Tool failures",
    "consortium": "valley",
    "firms": {"firm-a": "11" * 32, "firm-b": "22" * 32, "firm-c": "33" * 32},
    "minimum_cohort": 2,
    "model": {
        "name": "tabular",
        "digest": "0" * 64,
        "parameters": 10,
        "initial_digest": "1" * 64,
        "round_metrics": ["validation_loss"],
    },
    "contract": {"name": "milling"},
    "codec": {"clip": 0.1, "count_cap": 1000},
    "rounds": 5,
    "selection_metric": "validation_loss",
    "seed": 7,
}


def built(**changes):
    return JobFile.model_validate(VALUES | changes)


def test_its_bytes_give_the_same_file_and_digest():
    job = built()
    again = JobFile.from_bytes(job.to_bytes())
    assert again == job
    assert again.digest() == job.digest()


def test_the_order_of_firms_does_not_matter_and_any_value_does():
    firms = dict(reversed(list(VALUES["firms"].items())))
    assert built(firms=firms).digest() == built().digest()
    assert built(rounds=6).digest() != built().digest()
    assert built(contract={"name": "other"}).digest() != built().digest()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"minimum_cohort": 1}, "minimum_cohort"),
        ({"minimum_cohort": 4}, "retry mode takes"),
        ({"firms": {"firm-a": "11" * 32, "firm-b": "11" * 32}}, "same identity key"),
        ({"selection_metric": "accuracy"}, "selection_metric"),
        ({"codec": {"clip": 0.0, "count_cap": 1}}, "codec.clip"),
        ({"codec": {"clip": 1e-21, "count_cap": 1}}, "codec.clip"),
        ({"codec": {"clip": 0.1, "count_cap": 1, "clip_rule": "guess"}}, "codec.clip_rule"),
        ({"codec": {"clip": 0.1, "count_cap": 1, "clip_factor": 0.5}}, "codec.clip_factor"),
        ({"rounds": 0}, "rounds"),
        ({"surprise": 1}, "surprise"),
        ({"mode": "plaintext"}, "mode"),
        ({"id": "../etc"}, "id"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_name(changes, says):
    data = json.dumps(VALUES | changes).encode()
    with pytest.raises(JobFileError, match=says):
        JobFile.from_bytes(data)


def test_more_firms_than_retry_mode_takes_are_refused():
    firms = {f"firm-{i}": f"{i:064x}" for i in range(17)}
    with pytest.raises(JobFileError, match="16 firms"):
        JobFile.from_bytes(json.dumps(VALUES | {"firms": firms}).encode())


def test_a_firm_s_name_is_checked():
    with pytest.raises((JobFileError, IdentityError), match="cannot be a firm's name"):
        JobFile.from_bytes(json.dumps(VALUES | {"firms": VALUES["firms"] | {"../x": "44" * 32}}).encode())


def test_the_same_values_in_another_form_are_refused():
    with pytest.raises(JobFileError, match="canonical"):
        JobFile.from_bytes(json.dumps(json.loads(built().to_bytes()), indent=1).encode())

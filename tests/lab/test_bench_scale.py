"""The benchmark of many agents: what it measures is a real job, and its figures are of the processes they name."""

import json

import pytest
from typer.testing import CliRunner

from dure_lab.bench.scale import ScaleBenchmark
from dure_lab.cli import app
from tests.conftest import lacking
from tests.postgres import MISSING, programs, restartable_server

ARGUMENTS = [
    "bench",
    "scale",
    "--agents",
    "17",
    "--parameters",
    "2000",
    "--rounds",
    "2",
    "--idle-seconds",
    "1",
    "--json",
]


def measured(*more: str) -> ScaleBenchmark:
    done = CliRunner().invoke(app, [*ARGUMENTS, *more])
    assert done.exit_code == 0, done.output
    return ScaleBenchmark.model_validate(json.loads(done.stdout))


@pytest.mark.slow
def test_seventeen_agents_in_two_programs_run_a_job_in_threshold_mode() -> None:
    result = measured()
    assert (result.agents, result.parameters, result.store, result.mode) == (17, 2000, "sqlite", "threshold")
    assert result.rounds == 2
    assert result.seconds.keys() >= {"round", "join", "update", "vote", "release", "publish"}
    assert result.server_peak_rss_mib.keys() >= {"link", "coordinator", "console", "supervisor"}
    assert result.cpu_seconds_per_round.keys() >= {"link", "coordinator", "agents"}
    assert result.idle.connections_per_agent == result.idle.link_connections_per_agent == 1


@pytest.mark.slow
def test_the_same_over_postgresql() -> None:
    binaries = programs()
    if binaries is None:
        lacking(MISSING)
        return
    with restartable_server(binaries) as postgres:
        assert measured("--store", postgres.url).store == "postgresql"


@pytest.mark.parametrize("agents", ["3", "257"])
def test_fewer_than_threshold_mode_takes_and_more_than_a_job_may_have_are_refused(agents: str) -> None:
    assert CliRunner().invoke(app, ["bench", "scale", "--agents", agents]).exit_code == 2

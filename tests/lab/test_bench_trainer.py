"""The benchmark of a trainer's start, on this host."""

import json

import pytest
from typer.testing import CliRunner

from dure_client.trainer.sandbox import SandboxLevel, find_sandbox
from dure_lab.cli import app
from tests.conftest import lacking


@pytest.mark.slow
def test_the_start_is_timed_in_every_sandbox_and_beside_what_bounds_it() -> None:
    if find_sandbox().level is not SandboxLevel.FULL:
        lacking(f"the sandbox: {find_sandbox().why_not_more}")
    done = CliRunner().invoke(app, ["bench", "trainer", "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    seconds = {arm: spread["median"] for arm, spread in told["seconds"].items()}
    kinds = {(kind, level) for kind in ("trainer", "nothing") for level in ("full", "limits", "off")}
    assert set(seconds) == {f"{kind}, {level}" for kind, level in kinds} | {"import torch"}
    assert all(value > 0 for value in seconds.values())
    difference = seconds["nothing, full"] - seconds["nothing, off"]
    assert abs(told["full_adds_to_nothing"]["median"] - difference) < 1e-4

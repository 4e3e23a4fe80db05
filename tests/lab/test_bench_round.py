"""The comparison of rounds: both kinds are what they claim to be, sums are equal, and the limited link is limited."""

import json
import subprocess
from pathlib import Path
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

from dure_lab.bench.compare import RoundComparison
from dure_lab.bench.limited_link import NoLimitedLinkError, limited_link, why_not
from dure_lab.bench.unmasked import patch
from dure_lab.bench.unmasked.patch import leave_masks_out
from dure_lab.bench.unmasked.schedule import is_masked, pair_of
from dure_lab.cli import app
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.run import run_secure_aggregation
from dure_protocols.secagg.server import Attempt
from tests.conftest import lacking

NAMESPACES = Path("/run/netns")


@pytest.fixture
def patched(monkeypatch):
    """This process as the benchmark's processes are; taken back afterwards."""
    for owner, name in ((FirmSession, "accept_cohort"), (Attempt, "unmask")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    leave_masks_out()


def test_every_pair_of_rounds_has_one_of_each_kind_and_either_may_come_first():
    kinds = [(is_masked(2 * pair + 1), is_masked(2 * pair + 2)) for pair in range(40)]
    assert set(kinds) == {(True, False), (False, True)}
    assert [pair_of(number) for number in (1, 2, 3, 4)] == [0, 0, 1, 1]


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("masked", [True, False])
def test_only_rounds_of_one_kind_are_masked_and_both_come_to_the_sum(monkeypatch, masked):
    monkeypatch.setattr(patch, "is_masked", lambda _: masked)
    counts_seen, add = [], Attempt.add

    def looking(attempt, receipt, vector, layout):
        counts_seen.append(int(vector[layout.packed_words]))
        add(attempt, receipt, vector, layout)

    monkeypatch.setattr(Attempt, "add", looking)
    updates = {name: np.full(10, value, np.float32) for name, value in (("a", 0.25), ("b", 0.5), ("c", 0.75))}
    result = run_secure_aggregation(updates, {"a": 5, "b": 5, "c": 5}, randomness=Random(1).randbytes)
    assert (counts_seen == [5, 5, 5]) is not masked
    assert np.allclose(result.mean, 0.5, atol=0.001)


@pytest.fixture(scope="module")
def compared():
    arguments = ["--firms", "3", "--parameters", "2000", "--rounds", "2", "--training-seconds", "0.1", "--json"]
    done = CliRunner().invoke(app, ["bench", "round", "--compare", "unencrypted", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_comparison_prints_its_ratio_first_and_the_rounds_of_both_kinds(compared):
    assert next(iter(compared)) == "ratio"
    result = RoundComparison.model_validate(compared)
    assert (result.firms, result.parameters, result.pairs_measured) == (3, 2000, 2)
    assert result.encrypted.keys() == result.unencrypted.keys() >= {"round", "join", "update", "release"}
    assert result.link_gbit_per_second is None


@pytest.fixture
def can_limit():
    if reason := why_not():
        lacking(f"no limited link here: {reason}")


@pytest.mark.usefixtures("can_limit")
def test_a_limited_link_has_the_rate_asked_for_and_leaves_nothing_behind():
    with limited_link(0.1) as link:
        assert list(NAMESPACES.glob("dure-bench-*"))
        assert 0.05 < link.measured() < 0.15
    assert not list(NAMESPACES.glob("dure-bench-*"))


@pytest.mark.usefixtures("can_limit")
def test_a_limited_link_is_removed_when_the_block_fails_and_the_process_is_where_it_was():
    before = Path("/proc/thread-self/ns/net").readlink()
    within = None
    with pytest.raises(ZeroDivisionError), limited_link(0.1):  # noqa: PT012  # a block that fails is the point
        within = Path("/proc/thread-self/ns/net").readlink()
        1 / 0  # noqa: B018
    assert within not in {None, before}
    assert Path("/proc/thread-self/ns/net").readlink() == before
    assert not list(NAMESPACES.glob("dure-bench-*"))


@pytest.mark.usefixtures("can_limit")
def test_namespaces_of_a_benchmark_that_was_killed_are_removed_by_the_next():
    subprocess.run(["ip", "netns", "add", "dure-bench-4194305-server"], check=True)  # beyond the largest process id
    with limited_link(0.1):
        pass
    assert not list(NAMESPACES.glob("dure-bench-4194305-*"))


def test_without_root_the_reason_is_told(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoLimitedLinkError, match="need root"), limited_link(1):
        pass

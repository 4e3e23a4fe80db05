"""The oracle sees what it is there to see, and faults are data that a seed repeats."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dure_client.ledger import Ledger
from dure_protocols.global_state import GlobalState, model_digest
from dure_protocols.identity import Identity
from dure_protocols.job import CodecTerms, JobFile, ModelTerms
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.secagg.layout import TAG_WORDS
from tests.chaos import oracle
from tests.chaos.faults import EVERY_ROUND, FIRMS, MOMENTS, PHASES, Action, Fault, kills_of, random_faults
from tests.chaos.trainer import BITS, CLIP, COUNT_CAP

SIZE = 100


@pytest.fixture
def job() -> JobFile:
    return JobFile(
        id="job-1",
        title="Oracle",
        consortium="Chaos",
        firms={firm: Identity.from_seed(bytes([number]) * 32).public_bytes.hex() for number, firm in enumerate(FIRMS)},
        minimum_cohort=3,
        model=ModelTerms(
            name="no-training",
            digest="0" * 64,
            parameters=SIZE,
            initial_digest=model_digest(np.zeros(SIZE, np.float32)).hex(),
            round_metrics=("validation_loss",),
        ),
        contract={},
        codec=CodecTerms(bits=BITS, clip=CLIP, count_cap=COUNT_CAP),
        rounds=2,
        selection_metric="validation_loss",
        seed=0,
    )


def start_of(job: JobFile) -> GlobalState:
    return GlobalState(job, np.zeros(SIZE, np.float32))


def test_a_sum_tells_who_is_in_it_and_how_often(job: JobFile) -> None:
    state = start_of(job)
    sets = [FIRMS, FIRMS[:3], FIRMS[1:], (*FIRMS, FIRMS[1]), (FIRMS[0], FIRMS[1], FIRMS[1], FIRMS[3])]
    seen = {oracle.sum_of(job, state, members)[:-TAG_WORDS].tobytes() for members in sets}
    assert len(seen) == len(sets)


def test_the_sum_of_one_round_is_not_that_of_the_next(job: JobFile) -> None:
    state = start_of(job)
    first = oracle.sum_of(job, state, FIRMS)
    state.advance(first, len(FIRMS))
    assert (first != oracle.sum_of(job, state, FIRMS)).sum() > SIZE // 8


@pytest.fixture
def published(job: JobFile, tmp_path: Path):
    """A server's home and the finished rounds of an undisturbed job."""
    state, rows = start_of(job), []
    while not state.is_over:
        number = state.round
        words = oracle.sum_of(job, state, FIRMS)
        words.tofile(tmp_path / f"sum-{number}")
        outcome = state.advance(words, len(FIRMS))
        rows.append(SimpleNamespace(number=number, summed=list(FIRMS), sum_digest=f"sum-{number}", count=outcome.count))
    return SimpleNamespace(released=tmp_path), rows


def test_an_undisturbed_job_passes(job: JobFile, published) -> None:
    server, rows = published
    oracle.check_sums(job, rows, server)


@pytest.mark.parametrize(
    "members", [(*FIRMS, FIRMS[2]), FIRMS[:3], FIRMS[1:]], ids=["counted twice", "lost", "another lost"]
)
def test_a_firm_that_was_counted_twice_or_lost_is_seen(job: JobFile, published, members: tuple[str, ...]) -> None:
    server, rows = published
    oracle.sum_of(job, start_of(job), members).tofile(server.released / rows[0].sum_digest)
    with pytest.raises(AssertionError, match="round 1 is not that of"):
        oracle.check_sums(job, rows, server)


def test_a_missing_round_is_seen(job: JobFile, published) -> None:
    server, rows = published
    with pytest.raises(AssertionError, match="missing or doubled"):
        oracle.check(job, rows[1:], server, {}, whole=True)


@pytest.mark.parametrize(
    ("places", "said"),
    [([(1, 1), (1, 1)], "two vectors in one attempt"), ([(1, 1), (2, 1)], "one vector in two attempts")],
)
def test_a_mask_that_hid_two_vectors_is_seen(job: JobFile, tmp_path: Path, places, said: str) -> None:
    path, identity = tmp_path / "ledger.jsonl", Identity.from_seed(bytes(32))
    digests = [bytes(32), b"\1" * 32] if places[0] == places[1] else [bytes(32)] * 2
    with Ledger(path, identity) as ledger:
        for (number, attempt), digest in zip(places, digests, strict=True):
            ledger.record(Entry(RecordKind.BLOB, 10, digest, job.id, number, attempt))
    with pytest.raises(AssertionError, match=said):
        oracle.check_masks(SimpleNamespace(ledger_file=path, path=tmp_path), job)


def test_the_same_seed_gives_the_same_faults_and_others_others() -> None:
    lists = [random_faults(seed, "threshold", 3) for seed in range(50)]
    assert lists == [random_faults(seed, "threshold", 3) for seed in range(50)]
    assert len({str(faults) for faults in lists}) == 50
    assert {fault.action for faults in lists for fault in faults} >= {Action.KILL, Action.CUT, Action.DUPLICATE}


def test_every_random_fault_is_at_a_point_that_exists() -> None:
    for seed in range(300):
        for fault in random_faults(seed, "retry", 3):
            process, moment = fault.point
            assert moment in (*MOMENTS[process.partition(":")[0]], "delivering"), fault
            assert fault.phase in PHASES
            assert fault.phase != "vote", "there is no vote in retry mode"


def test_the_matrix_has_one_kill_a_phase_and_no_two_of_them_in_one_round() -> None:
    faults = kills_of("agent:firm-b", "threshold")
    assert [fault.phase for fault in faults] == list(PHASES)
    rounds = [fault.round for fault in faults if fault.phase in EVERY_ROUND]
    assert rounds == sorted(set(rounds))


def test_a_fault_happens_at_its_point_and_at_no_other() -> None:
    fault = Fault("link", Action.KILL, "update", 2, "link storing")
    assert fault.happens_at("link", "update", 2, "storing")
    for other in (("link", "update", 1, "storing"), ("link", "update", 2, "stored"), ("agent", "update", 2, "storing")):
        assert not fault.happens_at(*other)
    assert dataclasses.replace(fault, phase="keys").happens_at("link", "keys", 0, "storing")

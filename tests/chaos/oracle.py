"""What must hold of a job when it is over, whatever went wrong on the way. Every sum is computed again, to the bit."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dure_client.home import AgentHome
from dure_client.ledger import read_records, verify_file
from dure_protocols.global_state import GlobalState, is_training, last_round, layout_of
from dure_protocols.job import JobFile
from dure_protocols.ledger import RecordKind
from dure_protocols.secagg.codec import Contribution, Words, add_contribution
from dure_protocols.secagg.layout import TAG_WORDS
from dure_protocols.secagg.tags import OwnTag
from dure_server.settings import ServerHome
from dure_server.store.tables import Round
from tests.chaos.trainer import COUNT_CAP, loss_of, rows_of, update_of

Members = Mapping[int, Sequence[str]]
"""Round to the firms whose updates are in its sum."""


def sum_of(job: JobFile, state: GlobalState, members: Sequence[str]) -> Words:
    """The sum of the state's round over these firms, but for its tag: what must have been published."""
    layout = layout_of(job, state.round)
    words: Words = np.zeros(layout.words, np.uint64)
    exact = np.array([loss_of(state.model), 1.0])
    for firm in members:
        number, update, rows = sorted(job.firms).index(firm), None, 1
        if is_training(job, state.round):
            rows = rows_of(number)
            update = update_of(number, state.round, job.model.parameters)
        given = Contribution(update, rows / COUNT_CAP if update is not None else 0.0, rows, exact)
        add_contribution(words, layout, given, clip=state.clip, rounding=0, tag=OwnTag(bytes(32), firm, bytes(32)))
    return words


def final_model(job: JobFile, members: Members) -> NDArray[np.float32]:
    """What a job comes to whose rounds have these members."""
    state = GlobalState(job, np.zeros(job.model.parameters, np.float32))
    while not state.is_over:
        chosen = members[state.round]
        state.advance(sum_of(job, state, chosen), len(chosen))
    return state.final


def check(
    job: JobFile, rounds: Sequence[Round], server: ServerHome, homes: Mapping[str, AgentHome], *, whole: bool
) -> None:
    """Fail unless everything holds. rounds: the finished ones; whole: every round must have every firm in it."""
    assert [row.number for row in rounds] == list(range(1, last_round(job) + 1)), "a round is missing or doubled"
    members = {row.number: tuple(row.summed) for row in rounds}
    if whole:
        assert set(members.values()) == {tuple(sorted(job.firms))}, f"somebody is missing: {members}"
    expected = final_model(job, members).tobytes()
    finals = {name: home.job_folder(job.id) / "final.f32" for name, home in homes.items()}
    finals["server"] = server.job_folder(job.id) / "final.f32"
    wrong = [name for name, file in finals.items() if file.read_bytes() != expected]
    assert not wrong, f"{wrong} hold another final model than these members come to"
    for home in homes.values():
        verify_file(home.ledger_file, home.identity().public_bytes)
        check_masks(home, job)


def check_sums(job: JobFile, rounds: Sequence[Round], server: ServerHome) -> None:
    """Every published sum is that of its members, each once, to the bit."""
    state = GlobalState(job, np.zeros(job.model.parameters, np.float32))
    for row in rounds:
        expected, members = sum_of(job, state, row.summed), tuple(row.summed)
        published = np.fromfile(server.released / str(row.sum_digest), np.uint64)
        same = published[:-TAG_WORDS] == expected[:-TAG_WORDS]
        assert same.all(), f"the sum of round {row.number} is not that of {members}: {np.count_nonzero(~same)} words"
        outcome = state.advance(published, len(members))
        assert outcome.count == row.count, f"round {row.number} counts {row.count} rows, its sum {outcome.count}"


def check_deleted(rounds: Sequence[Round], server: ServerHome) -> None:
    """No published sum is left of a job that is over."""
    left = [row.number for row in rounds if (server.released / str(row.sum_digest)).exists()]
    assert not left, f"the sums of rounds {left} were not deleted"


def check_masks(home: AgentHome, job: JobFile) -> None:
    """No mask hid two vectors: one vector an attempt, however often it was sent, and no vector in two attempts."""
    vectors: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    receipts: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for record in read_records(home.ledger_file):
        entry = record.entry
        if entry.job == job.id and entry.kind is RecordKind.BLOB:
            vectors[entry.round, entry.attempt].add(entry.sha256)
        if entry.job == job.id and entry.kind is RecordKind.MASKED_UPDATE:
            receipts[entry.round, entry.attempt].add(entry.sha256)
    twice = [place for found in (vectors, receipts) for place, digests in found.items() if len(digests) > 1]
    assert not twice, f"{home.path.name} sent two vectors in one attempt: {twice}"
    sent = [digest for digests in vectors.values() for digest in digests]
    assert len(set(sent)) == len(sent), f"{home.path.name} sent one vector in two attempts"

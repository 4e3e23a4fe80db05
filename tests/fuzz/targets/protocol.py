"""Targets of the protocol: messages, a firm that answers them, job files, and what a firm keeps of a job."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dure_client.jobs.released import ReleasedFile
from dure_protocols.errors import IdentityError, MessageError, RefusedError
from dure_protocols.identity import SIGNATURE_BYTES, is_plain, verify
from dure_protocols.job import MAX_ROUNDS, JobFile, JobFileError
from dure_protocols.messages import (
    SHARE_BYTES,
    AskKeys,
    Cohort,
    Delivery,
    Escrow,
    EscrowedJoin,
    Establish,
    Invitation,
    Join,
    Message,
    Release,
    ReleaseRequest,
    Roster,
    VoteRequest,
    decode,
    encode,
)
from dure_protocols.secagg.disclosure import Disclosures, Kind
from dure_protocols.secagg.escrow import (
    HeldShares,
    check_escrow,
    conflicts,
    delivery_for,
    escrow_digest,
    open_delivery,
    recover_attempt_keys,
    recover_self_seed,
)
from dure_protocols.secagg.firm import FirmSession
from dure_protocols.secagg.shamir import combine, split
from dure_protocols.secagg.terms import Terms
from dure_protocols.wire import Reader
from tests.fuzz.mutate import JSON
from tests.fuzz.target import Target
from tests.fuzz.targets.files import FromFile
from tests.fuzz.targets.recorded import LONGEST_SEED_BYTES, Situation, cases_of, recorded, vector_messages
from tests.fuzz.targets.scratch import scratch
from tests.protocols.test_job import VALUES
from tests.protocols.test_messages import SAMPLES
from tests.vectors.make_scene import pattern


def protocol_targets() -> Iterator[Target]:
    """One for each decoder of messages, keys, shares and state."""
    yield Target("messages", decode, (MessageError,), message_seeds(), 24, encode)
    yield Target("session/answer", _answer, (MessageError, RefusedError), _requests(), 48)
    for situation in _one_of_each_job():
        states = tuple(state for state in recorded().states if state[1:33] == situation.terms.job_digest)
        mode = "retry" if situation.terms.threshold is None else "threshold"
        restore, refusals = _Restoring(situation), (MessageError, RefusedError)
        yield Target(f"session/{mode}-state", restore, refusals, states, 24, FirmSession.snapshot)
    yield Target(
        "disclosures/bytes",
        Disclosures.from_bytes,
        (MessageError, RefusedError),
        _disclosures(),
        48,
        Disclosures.to_bytes,
        check=_check_kinds,
    )
    file = scratch("released") / "released.bin"
    released = FromFile(file, lambda: ReleasedFile(file).disclosures)
    refusals = (MessageError, RefusedError)
    yield Target("disclosures/file", released, refusals, _disclosures(), 48, Disclosures.to_bytes, _check_kinds)
    yield Target("job-file", JobFile.from_bytes, (JobFileError,), _job_files(), 128, JobFile.to_bytes, _check_job, JSON)
    yield Target("shares", _combine, (MessageError,), _shares(), 8)
    yield Target("delivery", _deliver, (MessageError,), _deliveries(), 8)
    yield Target("escrow", _opened, (MessageError, RefusedError), _escrows(), 48)
    yield Target("signature", _verify, (IdentityError,), _signatures(), 8)


def message_seeds() -> tuple[bytes, ...]:
    """Every kind of message, short and as it is in a round."""
    seeds = [*map(encode, SAMPLES), *vector_messages(), *recorded().messages]
    return tuple(dict.fromkeys(seed for seed in seeds if len(seed) <= LONGEST_SEED_BYTES))


def _requests() -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(situation.request for situation in recorded().situations))


def _answer(data: bytes) -> Message:
    """What firms make of a message, each in the first situation in which it waits for one of this kind."""
    request = decode(data)
    kept: RefusedError | None = None
    for situation in _waiting(data[0]):
        try:
            _asked(situation, request)
        except RefusedError as refusal:
            kept = refusal
    if kept is not None:
        raise kept
    return request


def _waiting(kind: int) -> list[Situation]:
    found: dict[tuple[str, bytes], Situation] = {}
    for situation in recorded().situations:
        if situation.request[0] == kind:
            found.setdefault((situation.firm, situation.terms.job_digest), situation)
    return list(found.values())[:3]


def _asked(situation: Situation, request: Message) -> None:
    session, step = situation.session(), situation.step
    match request:
        case AskKeys():
            session.advertise(request.epoch)
        case Roster():
            session.encapsulate(request)
        case Establish():
            session.establish(request)
        case Invitation():
            if request.snapshot:
                session.check_witnesses(request, bytes.fromhex(step["model_hash"]))
            known = decode(situation.request)
            if isinstance(known, Invitation) and known.round < request.round <= MAX_ROUNDS:
                request = replace(
                    request, round=known.round
                )  # the ratchet takes seconds to there, and an agent asks less
            session.join(request, bytes.fromhex(step["model_hash"]), bytes.fromhex(step["model_key"]))
        case Cohort():
            session.accept_cohort(request)
        case VoteRequest():
            session.vote(request)
        case ReleaseRequest():
            session.release(request)


class _Restoring:
    """Gives a firm of a job the state that bytes say."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation

    def __call__(self, data: bytes) -> FirmSession:
        session = self._situation.session()
        session.restore(data)
        return session


def _one_of_each_job() -> list[Situation]:
    return list({situation.terms.job_digest: situation for situation in recorded().situations}.values())


def _disclosures() -> tuple[bytes, ...]:
    made = Disclosures()
    seeds = [made.to_bytes()]
    for number, members in enumerate((("11" * 32, "22" * 32), ("11" * 32, "22" * 32, "33" * 32))):
        made.add(Kind.of(number), bytes([number]) * 32, members)
        made.add_model(bytes([number + 9]) * 32)
        seeds.append(made.to_bytes())
    released = (situation.released for situation in recorded().situations)
    return tuple(dict.fromkeys([*seeds, *released]))


def _check_kinds(disclosures: Disclosures) -> None:
    kinds = {kind for kind, _ in disclosures._cohorts}
    assert kinds <= set(map(str, Kind)), f"a cohort of kind {kinds} counts for nothing"


def _job_files() -> tuple[bytes, ...]:
    whole = JobFile.model_validate(VALUES)
    options = {"model": whole.model.model_copy(update={"options": {"layers": [1, 2.5, None], "nested": {"a": "b"}}})}
    seeds = [whole.to_bytes(), whole.model_copy(update=options).to_bytes()]
    return (*seeds, *(case["text"].encode() for case in cases_of("model", "job")))


def _check_job(job: JobFile) -> None:
    for shown in (job.title, job.consortium, *job.firms):
        assert is_plain(shown), f"{shown!r} is shown to people"


def _combine(data: bytes) -> bytes:
    count, length = data[:1], SHARE_BYTES
    shares = {point + 1: data[1 + point * length :][:length] for point in range(len(data) // length)}
    return combine(shares, count[0] % 8 + 1 if count else 1)


def _shares() -> tuple[bytes, ...]:
    shares = split(bytes(range(32)), 3, range(1, 6), lambda length: pattern("coefficient", length))
    return (b"\x02" + b"".join(shares), b"\x02" + b"".join(shares[:2]), b"\x02" + b"\xff" * 33 * 3)


def _deliver(data: bytes) -> HeldShares | None:
    inputs = cases_of("sharing", "delivery")[0]
    reader = Reader(data)
    delivery = Delivery.read(reader)
    reader.end()
    keys = bytes.fromhex(inputs["attempt_key"]), bytes.fromhex(inputs["box_key"])
    return open_delivery(delivery, inputs["receiver"], *keys)


def _deliveries() -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(inputs["delivery"]) for inputs in cases_of("sharing", "delivery"))


def _recovery() -> dict[str, Any]:
    """A dealer's escrow and what the others release of it: enough to open both of its secrets."""
    return cases_of("sharing", "recovery")[0]


def _escrows() -> tuple[bytes, ...]:
    cases = (*cases_of("sharing", "recovery"), *cases_of("sharing", "escrow check"))
    return tuple(dict.fromkeys(bytes.fromhex(inputs["escrow"]) for inputs in cases))


def _opened(data: bytes) -> list[str]:
    """What the server does with a firm's escrow: checks it, hands it out, compares it, opens it."""
    reader = Reader(data)
    escrow = Escrow.read(reader)
    reader.end()
    inputs = _recovery()
    dealer, zeros, threshold = inputs["dealer"], bytes(64), inputs["threshold"]
    firms = dict.fromkeys(inputs["firms"], zeros[:32])
    terms = Terms(zeros[:32], firms, 2, 1, threshold=threshold)
    escrowed = EscrowedJoin(Join(dealer, 1, 1, 1, zeros[:32], escrow_digest(escrow), zeros), escrow)
    check_escrow(terms, escrowed)
    others = [firm for firm in firms if firm != dealer]
    for firm in others:
        delivery_for(terms, firm, escrowed)
    conflicts(terms, [escrowed])
    shares = [((dealer, bytes.fromhex(share)),) for share in inputs["shares"].values()]
    releases = [
        Release(firm, zeros[:32], zeros[:32], share, share, zeros) for firm, share in zip(others, shares, strict=True)
    ]
    refused: RefusedError | None = None
    found = []
    for recover in (recover_self_seed, recover_attempt_keys):
        try:
            recover(terms, threshold, escrowed, releases)
            found.append(recover.__name__)
        except RefusedError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return found


def _verify(data: bytes) -> None:
    verify(data[:32], data[32 : 32 + SIGNATURE_BYTES], "dure join", data[32 + SIGNATURE_BYTES :])


def _signatures() -> tuple[bytes, ...]:
    identity, part = recorded().situations[0].identity, pattern("part", 40)
    return (identity.public_bytes + identity.sign("dure join", part) + part,)

"""Leaving a job or the consortium: stop here at once, erase the keys, tell the server when it is reachable.

    jobs/<job>/leave.bin  leave-receipt.bin     the signed statement about a job, and the server's receipt for it
    state/leave.bin       leave-receipt.bin     the same about the consortium

What stops is decided by files of this home alone, so it needs no server and survives a kill: the decision "left" is
written first and every request is refused from then on; erasing and telling may be repeated until they are done.
What is kept: job files, results, statements, receipts, the ledger, and `state/released.bin`, which guards later jobs.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dure_client.home import AgentHome, HomeError, write_file
from dure_client.jobs.approvals import LEAVE_FILE, ApprovalError, KnownJob, Verdict, decide, known_job
from dure_client.ledger import read_records
from dure_client.ledger_export import LAST_EXPORT, export
from dure_client.trees import remove_tree
from dure_protocols.certificates import certificate_der
from dure_protocols.errors import DureError
from dure_protocols.frames import Envelope, Place
from dure_protocols.leaving import EVERY_JOB, Leave, LeaveReceipt, Runs, runs_of
from dure_protocols.ledger import RecordKind

RECEIPT_FILE = "leave-receipt.bin"


class LeavingError(DureError):
    """A statement or receipt on disk is damaged, or there is nothing to leave."""


class LeftConsortiumError(HomeError):
    """This firm has left its consortium and erased its keys: there is nothing to run."""


def leave_file(home: AgentHome, job: str) -> Path:
    """Where the statement about a job is, or with an empty name the one about the consortium."""
    return (home.job_folder(job) if job else home.state) / LEAVE_FILE


def receipt_file(home: AgentHome, job: str) -> Path:
    """Where the server's receipt is."""
    return leave_file(home, job).with_name(RECEIPT_FILE)


def has_left_consortium(home: AgentHome) -> bool:
    """Whether this firm said that it leaves; whether the server has heard of it does not matter."""
    return leave_file(home, "").exists()


def check_is_member(home: AgentHome) -> None:
    """Raises LeftConsortiumError for a firm that has left its consortium and erased its keys."""
    if has_left_consortium(home) and not home.key_store().has_key():
        exported = last_export(home)
        check = "`dure-agent ledger verify FILE --fingerprint …` checks it"
        where = f", and the last export of its ledger is {exported} ({check})" if exported.exists() else ""
        raise LeftConsortiumError(
            f"this firm left the consortium and erased its keys; what is kept is in {home.path}{where}. To join again, "
            "ask for an invitation and name another folder with --home"
        )


def last_export(home: AgentHome) -> Path:
    """The ledger as it was exported before the keys were erased."""
    return home.ledger_file.with_name(LAST_EXPORT)


def what_leaving_lacks(home: AgentHome) -> str:
    """What is still to be done of leaving the consortium, in a sentence; empty if nothing is, or the firm has not left.

    Raises LeavingError for a damaged receipt, KeyStoreError for a token that is away.
    """
    again = "run the agent (`dure-agent run`), or repeat `dure-agent leave --consortium`"
    if not has_left_consortium(home) or not home.key_store().has_key():
        return ""
    if stored_receipt(home, "") is None:
        return f"the server has not heard of it yet: {again}"
    return f"the server has receipted it, and the keys are not erased yet: {again}"


def has_left(home: AgentHome, job: str) -> bool:
    """Whether this firm left a job, or the consortium."""
    return has_left_consortium(home) or (job in home.job_names() and leave_file(home, job).exists())


def declare(home: AgentHome, job: str, now: datetime) -> Leave:
    """Leave, for this home: from here on every request is refused. Doing it again returns the first statement.

    job: a known job's id, or empty for the consortium. Raises ApprovalError for an unknown job, HomeError.
    """
    file = leave_file(home, job)
    if file.exists():
        return stored_leave(home, job)
    config, identity = home.config(), home.identity()
    if job:
        known = known_job(home, job)
        decide(home, known.job, Verdict.LEFT, now)
        digest = known.job.digest()
    else:
        digest = EVERY_JOB
    leave = Leave.make(config.consortium, config.firm, job, digest, int(now.timestamp()), identity)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(file, leave.encode())
    for other in _known(home) if not job else ():
        decide(home, other.job, Verdict.LEFT, now)
    return leave


def stored_leave(home: AgentHome, job: str) -> Leave:
    """A statement from its file. Raises LeavingError."""
    file = leave_file(home, job)
    try:
        return Leave.decode(file.read_bytes())
    except (OSError, DureError) as error:
        raise LeavingError(f"{file} cannot be read ({error}): delete it and leave again") from error


def stored_receipt(home: AgentHome, job: str) -> LeaveReceipt | None:
    """A receipt, if the server has given one and it holds. Raises LeavingError if it does not."""
    file = receipt_file(home, job)
    try:
        receipt = LeaveReceipt.decode(file.read_bytes())
        receipt.check(stored_leave(home, job), home.root_file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DureError) as error:
        raise LeavingError(f"{file} is damaged: {error}; restore it from a backup") from error
    return receipt


def untold(home: AgentHome) -> list[Leave]:
    """Statements that the server has not receipted. What is about the consortium covers what is about jobs."""
    names = [""] if has_left_consortium(home) else [job for job in home.job_names() if leave_file(home, job).exists()]
    return [stored_leave(home, name) for name in names if not receipt_file(home, name).exists()]


def left_jobs(home: AgentHome) -> list[str]:
    """The jobs that this firm has left, by id; all, once it has left the consortium."""
    return [job for job in home.job_names() if has_left(home, job)]


def erase_job(home: AgentHome, job: str) -> None:
    """Erase a job's keys, what the firm's updates lost in rounds, and answers that have not left. Nobody may be at work
    on the job. Doing it again changes nothing. A file system may keep copies of its own of what it deleted."""
    folder = home.job_folder(job)
    for file in (folder / "session.bin", *folder.glob("residual-*.f32")):
        file.unlink(missing_ok=True)
    remove_tree(folder / "scratch")
    answers = home.state / "answers"
    for file in answers.iterdir() if answers.is_dir() else ():
        with contextlib.suppress(OSError, DureError):
            reply = Envelope.decode(file.read_bytes())
            if Place.of(reply.group).job == job:
                for ref in reply.blobs:
                    (home.state / "outbox" / ref.sha256).unlink(missing_ok=True)


def conclude(home: AgentHome, leave: Leave, receipt: bytes) -> LeaveReceipt:
    """Keep the server's receipt; the firm's keys are erased once it has left the consortium. Raises LeavingError, also
    where the receipt is kept and the keys could not be erased: `erase_keys` then is still to be done."""
    try:
        told = LeaveReceipt.decode(receipt)
        told.check(leave, home.root_file.read_bytes())
    except (OSError, DureError) as error:
        raise LeavingError(f"the server's receipt is none: {error}") from error
    write_file(receipt_file(home, leave.job), receipt)
    if leave.is_about_consortium:
        erase_keys(home)
    return told


def must_erase_keys(home: AgentHome) -> bool:
    """Whether the server has receipted that this firm left the consortium, and its identity key is still there.

    Raises LeavingError for a damaged receipt, KeyStoreError for a token that is away.
    """
    return stored_receipt(home, "") is not None and home.key_store().has_key()


def erase_keys(home: AgentHome) -> None:
    """Erase the firm's keys and certificate, after the ledger was exported so that it can be checked without them.

    The identity key goes last: until it is gone, doing it again does the rest. Raises LeavingError.
    """
    if not home.key_store().has_key():
        return
    target = last_export(home)
    try:
        root_der = certificate_der(home.root_file.read_bytes())
        export(home.ledger_file, target, home.config().firm, home.identity(), root_der)
        for file in (
            home.tls_key_file,
            home.tls_certificate_file,
            home.next_tls_key_file,
            home.next_tls_certificate_file,
        ):
            file.unlink(missing_ok=True)
        home.key_store().erase()
    except (OSError, DureError) as error:
        raise LeavingError(
            f"this firm has left, but its keys are not erased yet, because the ledger is exported to {target} first "
            f"and something failed: {error}; mend that and repeat `dure-agent leave --consortium`, or delete "
            f"{home.keys}"
        ) from error


@dataclass(frozen=True)
class Remains:
    """What stays of this firm in a job's published sums, by its own account.

    opened: rounds, as runs, whose sum it helped to open; uploaded: rounds in which its masked vector left and it opened
    nothing. mode: of the job: in threshold mode the others may have opened those as well; None: its file is damaged.
    """

    job: str
    mode: str | None
    opened: Runs
    uploaded: Runs


def what_remains(home: AgentHome, jobs: Iterable[str]) -> list[Remains]:
    """What the ledger says of jobs, by id. Raises LedgerError where it cannot be read."""
    kinds = RecordKind.RELEASE, RecordKind.MASKED_UPDATE
    left: dict[str, dict[RecordKind, set[int]]] = {job: {kind: set() for kind in kinds} for job in jobs}
    for record in read_records(home.ledger_file):
        entry = record.entry
        if entry.job in left and entry.kind in kinds:
            left[entry.job][entry.kind].add(entry.round)
    modes = {known.job.id: known.job.mode for known in _known(home)}
    return [
        Remains(
            job,
            modes.get(job),
            runs_of(rounds[RecordKind.RELEASE]),
            runs_of(rounds[RecordKind.MASKED_UPDATE] - rounds[RecordKind.RELEASE]),
        )
        for job, rounds in left.items()
    ]


def _known(home: AgentHome) -> Iterator[KnownJob]:
    for name in home.job_names():
        with contextlib.suppress(ApprovalError):  # a damaged job file; the statement covers it all the same
            yield known_job(home, name)


def when(seconds: int) -> str:
    """A statement's or receipt's time for a person, in UTC."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return f"second {seconds}"

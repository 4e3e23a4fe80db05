"""The tables. Migrations in `migrations/versions` make them; a test holds the two against each other.

Times are UTC. SQLite would drop the zone: `UtcTime` writes naive UTC there, and reads aware UTC everywhere.
"""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Name = String(63)
Fingerprint = String(64)
RowNumber = BigInteger().with_variant(Integer, "sqlite")
"""64-bit on PostgreSQL; on SQLite only a column of type INTEGER is a rowid, which is 64-bit as well."""


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC, aware on both sides. A naive datetime is refused: it does not say which moment it is."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database: aware in PostgreSQL, naive UTC in SQLite."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the store takes only datetimes with a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """From the database: always aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class FirmStatus(StrEnum):
    """Where a firm stands: invited → joined (its keys are known) → approved (it may use the link); or revoked by the
    operator, or left by its own word."""

    INVITED = "invited"
    JOINED = "joined"
    APPROVED = "approved"
    REVOKED = "revoked"
    LEFT = "left"


class JobState(StrEnum):
    """A job's life: proposed → running ⇄ paused → finished | stopped | failed."""

    PROPOSED = "proposed"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class SignoffState(StrEnum):
    """What a firm said to a job."""

    AWAITING = "awaiting"
    APPROVED = "approved"
    REFUSED = "refused"


class RoundState(StrEnum):
    """An attempt at a round: exactly one attempt of a round may be finished."""

    RUNNING = "running"
    FINISHED = "finished"
    ABANDONED = "abandoned"


class EventKind(StrEnum):
    """What an event of a job's timeline tells."""

    STATE = "state"
    """The job's new state, which is the code."""
    COORDINATOR = "coordinator"
    """A coordinator process took the job up."""
    SIGNOFF = "signoff"
    """A firm approved the job (code "approved") or refused it."""
    PHASE = "phase"
    """A phase ended."""
    DROPPED = "dropped"
    """A firm dropped out of a phase, and why."""
    WAITING = "waiting"
    """Too few firms were ready."""
    ABANDONED = "abandoned"
    """An attempt was given up."""
    FINISHED = "finished"
    """A round's sum was published."""


def _words(kind: type[StrEnum]) -> Enum:
    """Stored as the enum's words, checked here; no database type that a migration would have to alter."""
    return Enum(kind, native_enum=False, length=16, values_callable=lambda words: [word.value for word in words])


class Base(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Consortium(Base):
    """One row: whose store this is. Locked while the audit log grows."""

    __tablename__ = "consortium"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64))
    root_fingerprint: Mapped[str] = mapped_column(Fingerprint)
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class Firm(Base):
    """A firm of the consortium."""

    __tablename__ = "firms"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    status: Mapped[FirmStatus] = mapped_column(_words(FirmStatus))
    identity_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Raw Ed25519 public key, 32 bytes; None until the firm has joined."""
    identity_fingerprint: Mapped[str | None] = mapped_column(Fingerprint)
    agent_version: Mapped[str | None] = mapped_column(String(64))
    invited_at: Mapped[datetime] = mapped_column(UtcTime)
    joined_at: Mapped[datetime | None] = mapped_column(UtcTime)
    approved_at: Mapped[datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcTime)
    """When the firm's agent last connected or disconnected."""
    connected_since: Mapped[datetime | None] = mapped_column(UtcTime)
    """None while the firm's agent is not connected."""
    link_refusal: Mapped[str | None] = mapped_column(Text)
    """Why the link refused the firm's agent when it came last, in a sentence; None once it is connected."""


class Departure(Base):
    """A firm's signed word that it leaves a job or the consortium, and the receipt that it got."""

    __tablename__ = "departures"

    firm: Mapped[str] = mapped_column(ForeignKey("firms.name"), primary_key=True)
    job: Mapped[str] = mapped_column(Name, primary_key=True)
    """Empty: the consortium."""
    at: Mapped[datetime] = mapped_column(UtcTime)
    identity: Mapped[str] = mapped_column(Fingerprint, primary_key=True)
    """Fingerprint of the key that signed: a firm may join anew with another, and leave again."""
    statement: Mapped[bytes] = mapped_column(LargeBinary)
    receipt: Mapped[bytes] = mapped_column(LargeBinary)


class Invitation(Base):
    """An invitation. Its secret is stored hashed; 256 random bits need no slow hash."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    firm: Mapped[str] = mapped_column(ForeignKey("firms.name"), index=True)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime] = mapped_column(UtcTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcTime)
    certificate: Mapped[str | None] = mapped_column(ForeignKey("certificates.fingerprint"))
    """Certificate that was issued on this invitation, for a firm that asks again after a lost answer."""
    withdrawn_at: Mapped[datetime | None] = mapped_column(UtcTime)


class Certificate(Base):
    """A client certificate that the root issued."""

    __tablename__ = "certificates"

    fingerprint: Mapped[str] = mapped_column(Fingerprint, primary_key=True)
    serial: Mapped[str] = mapped_column(String(40), unique=True)
    """Lower-case hex: 159 bits fit no integer column."""
    firm: Mapped[str] = mapped_column(ForeignKey("firms.name"), index=True)
    pem: Mapped[bytes] = mapped_column(LargeBinary)
    issued_at: Mapped[datetime] = mapped_column(UtcTime)
    not_after: Mapped[datetime] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)


class Job(Base):
    """A job; `body` is the job file byte for byte, `digest` its SHA-256."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(Fingerprint)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    num_rounds: Mapped[int] = mapped_column(Integer)
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    """The newest epoch of pair keys that a coordinator began; 0 before the first."""
    operation: Mapped[dict[str, float | int | None]] = mapped_column(JSON, default=dict, server_default="{}")
    """How the operator runs it (`dure_server.operation`): what differs from what is usual."""
    sums_from: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """The sums of earlier rounds are deleted: no firm needs them any more."""
    state: Mapped[JobState] = mapped_column(_words(JobState), index=True)
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    changed_at: Mapped[datetime] = mapped_column(UtcTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)


class Signoff(Base):
    """What each firm of a job said to it."""

    __tablename__ = "signoffs"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    firm: Mapped[str] = mapped_column(ForeignKey("firms.name"), primary_key=True)
    state: Mapped[SignoffState] = mapped_column(_words(SignoffState))
    code: Mapped[str | None] = mapped_column(String(64))
    """A RefusalCode where the firm refused."""
    signature: Mapped[bytes | None] = mapped_column(LargeBinary)
    changed_at: Mapped[datetime] = mapped_column(UtcTime)


class Round(Base):
    """One attempt at a round of a job."""

    __tablename__ = "rounds"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[RoundState] = mapped_column(_words(RoundState))
    reason: Mapped[str] = mapped_column(Text, default="")
    """Why it was given up; of a finished attempt, what the firms complained about."""
    epoch: Mapped[int] = mapped_column(Integer)
    members: Mapped[list[str]] = mapped_column(JSON)
    """Who was asked to mask: the cohort."""
    survivors: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Threshold mode: whose sum is opened, once that is settled."""
    count: Mapped[float | None]
    """Rows that the published sum covers, over all members; no firm's own count is known."""
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    model_digest: Mapped[str | None] = mapped_column(Fingerprint)
    """SHA-256 of the model after this round."""
    sum_digest: Mapped[str | None] = mapped_column(Fingerprint)
    seconds: Mapped[dict[str, float]] = mapped_column(JSON)
    """Wall time of each phase: join, update, release, publish."""
    bytes_up: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_down: Mapped[int] = mapped_column(BigInteger, default=0)
    started_at: Mapped[datetime] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)

    @property
    def summed(self) -> list[str]:
        """Whose vectors the published sum holds."""
        return self.members if self.survivors is None else self.survivors


class Progress(Base):
    """Where a job is right now; one row a job, written over."""

    __tablename__ = "progress"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    phase: Mapped[str] = mapped_column(String(32))
    round_number: Mapped[int | None] = mapped_column(Integer)
    attempt: Mapped[int | None] = mapped_column(Integer)
    members: Mapped[list[str]] = mapped_column(JSON)
    """Firms that take part in this phase."""
    waiting_for: Mapped[list[str]] = mapped_column(JSON)
    """Those of them whose answer is not here yet."""
    sentence: Mapped[str] = mapped_column(Text)
    """Why we wait, for a person."""
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class Event(Base):
    """One event of a job's timeline. The numbers grow with time, over all jobs."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "job", "number"),)

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[datetime] = mapped_column(UtcTime)
    """When it was over."""
    kind: Mapped[EventKind] = mapped_column(_words(EventKind))
    phase: Mapped[str | None] = mapped_column(String(32))
    round_number: Mapped[int | None] = mapped_column(Integer)
    attempt: Mapped[int | None] = mapped_column(Integer)
    firm: Mapped[str | None] = mapped_column(Name)
    seconds: Mapped[float | None]
    code: Mapped[str | None] = mapped_column(String(64))


class EventCount(Base):
    """How many events of a kind and code a job ever had; never pruned."""

    __tablename__ = "event_counts"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    kind: Mapped[EventKind] = mapped_column(_words(EventKind), primary_key=True)
    code: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)


class LedgerHead(Base):
    """Where a firm's ledger ends, as the firm said last."""

    __tablename__ = "ledger_heads"

    firm: Mapped[str] = mapped_column(ForeignKey("firms.name"), primary_key=True)
    countersigned: Mapped[bytes] = mapped_column(LargeBinary)
    """`Countersigned.to_line`: as the firms get it."""


class AuditEvent(Base):
    """One state-changing act. Each event's hash covers the one before, so a changed or missing event shows."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcTime)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(128))
    detail: Mapped[str] = mapped_column(Text)
    """Canonical JSON."""
    previous: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)

"""What a session is bound to, and the digests that bind it (docs/protocol.md, section 3)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dure_protocols.errors import IdentityError, MisuseError, RefusalCode, RefusedError
from dure_protocols.identity import verify
from dure_protocols.job import JobFile, least_threshold
from dure_protocols.messages import Join, MaskedUpdate, Release, Vote
from dure_protocols.secagg.disclosure import Kind
from dure_protocols.wire import Writer, digest

Randomness = Callable[[int], bytes]
"""From a number of bytes to as many random ones: the operating system's in production, fixed in a test vector."""


@dataclass(frozen=True)
class Terms:
    """The part of the job file that the aggregation needs, and what the firm's own policy adds.

    firms: name to raw Ed25519 public key, the whole roster; minimum_cohort: the larger of the job's and the firm's own;
    minimum_difference, minimum_statistics_difference: the differencing guard for sums of updates and of statistics, the
    least number of firms by which two released cohorts may differ (1 allows every cohort); see `disclosure`.
    threshold: how many firms must agree on the survivors, and can open a sum; None in retry mode.
    """

    job_digest: bytes
    firms: Mapping[str, bytes]
    minimum_cohort: int
    minimum_difference: int = 1
    minimum_statistics_difference: int = 2
    threshold: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not least_threshold(len(self.firms)) <= self.threshold <= len(self.firms) - 1:
            raise MisuseError(
                f"a threshold of {self.threshold} among {len(self.firms)} firms: at least"
                f" {least_threshold(len(self.firms))} and fewer than all are needed"
            )
        if not 2 <= self.minimum_cohort <= len(self.firms):
            raise MisuseError(f"a minimum cohort of {self.minimum_cohort} does not fit {len(self.firms)} firms")

    @classmethod
    def of(
        cls,
        job: JobFile,
        *,
        minimum_cohort: int = 2,
        minimum_difference: int = 1,
        minimum_statistics_difference: int = 2,
    ) -> "Terms":
        """The terms of a job, with the firm's own minimum where that is larger."""
        cohort = max(job.minimum_cohort, minimum_cohort)
        return cls(
            job.digest(),
            job.identities(),
            cohort,
            minimum_difference,
            minimum_statistics_difference,
            job.threshold,
        )

    @property
    def least_survivors(self) -> int:
        """The fewest vectors that a sum of this job may hold."""
        return max(self.minimum_cohort, self.threshold or 0)

    @property
    def witnesses(self) -> int:
        """How many other firms must have signed the hash of a model for a firm to believe it."""
        return min(len(self.firms) - 1, least_threshold(len(self.firms)))

    def least_difference(self, kind: Kind) -> int:
        """By how many firms a cohort for this kind of sum must differ from earlier ones."""
        return self.minimum_statistics_difference if kind is Kind.STATISTICS else self.minimum_difference

    def check(self, firm: str, signature: bytes, label: str, *parts: bytes) -> None:
        """Check a firm's signature against its pinned key. Raises RefusedError."""
        if firm not in self.firms:
            raise RefusedError(RefusalCode.ROSTER, f"{firm!r} is not a firm of this job")
        try:
            verify(self.firms[firm], signature, label, self.job_digest, *parts)
        except IdentityError as error:
            raise RefusedError(RefusalCode.SIGNATURE, f"{firm}: {error}") from error


def names(members: Iterable[str]) -> bytes:
    """The canonical bytes of a set of firms."""
    return bytes(Writer().items(sorted(members), Writer.text))


def numbers(*values: int) -> bytes:
    """Canonical bytes of epoch, round, attempt."""
    writer = Writer()
    for value in values:
        writer.u64(value)
    return bytes(writer)


def mask_context(
    terms: Terms, transcript: bytes, epoch: int, round_: int, attempt: int, members: Iterable[str], model_hash: bytes
) -> bytes:
    """What every mask of an attempt is bound to. Firms that were shown different things derive different masks.

    Two firms whose contexts differ add masks that do not cancel: the server is left with noise, not with an update.
    """
    return digest(
        "dure mask context", terms.job_digest, transcript, numbers(epoch, round_, attempt), names(members), model_hash
    )


def names_digest(members: Iterable[str]) -> bytes:
    """The digest of a set of firms."""
    return digest("dure members", names(members))


def join_parts(transcript: bytes, join: Join) -> tuple[bytes, ...]:
    """What a join signs."""
    place = numbers(join.epoch, join.round, join.attempt)
    return transcript, place, join.firm.encode(), join.model_hash, join.escrow


def receipt_parts(receipt: MaskedUpdate) -> tuple[bytes, ...]:
    """What a masked update's receipt signs."""
    return receipt.context, receipt.firm.encode(), receipt.vector_digest, names(receipt.complaints)


def vote_parts(vote: Vote) -> tuple[bytes, ...]:
    """What a vote signs."""
    return vote.context, vote.firm.encode(), vote.survivors


def release_parts(release: Release) -> tuple[bytes, ...]:
    """What a release signs."""
    return release.context, release.firm.encode(), release.seed, release.shares_bytes()


def check_join(terms: Terms, transcript: bytes, place: tuple[int, int, int], join: Join) -> None:
    """Check that a Join is signed for this attempt. Firms and server; raises RefusedError naming the firm."""
    if (join.epoch, join.round, join.attempt) != place:
        raise RefusedError(RefusalCode.REPLAY, f"{join.firm}'s join is of another attempt than {place}")
    terms.check(join.firm, join.signature, "dure join", *join_parts(transcript, join))


def check_receipt(terms: Terms, context: bytes, receipt: MaskedUpdate) -> None:
    """Check a masked update's receipt. Firms and server; raises RefusedError naming the firm."""
    if receipt.context != context:
        raise RefusedError(RefusalCode.REPLAY, f"{receipt.firm} masked for another attempt, member set or model")
    terms.check(receipt.firm, receipt.signature, "dure masked update", *receipt_parts(receipt))


def check_vote(terms: Terms, context: bytes, survivors: bytes, vote: Vote) -> None:
    """Check a vote for the survivors with this digest (`names_digest`). Firms and server.

    Raises RefusedError naming the firm.
    """
    if vote.context != context or vote.survivors != survivors:
        raise RefusedError(RefusalCode.REPLAY, f"{vote.firm} voted for another survivor set, or in another attempt")
    terms.check(vote.firm, vote.signature, "dure vote", *vote_parts(vote))


def check_release(terms: Terms, context: bytes, firm: str, release: Release) -> None:
    """Check a release. The server's; raises RefusedError naming the firm."""
    if release.firm != firm or release.context != context:
        raise RefusedError(RefusalCode.REPLAY, f"{firm} released for another attempt")
    terms.check(firm, release.signature, "dure release", *release_parts(release))

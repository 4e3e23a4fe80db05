"""What a session is bound to, and the digests that bind it (docs/protocol.md, section 3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dure_protocols.errors import IdentityError, MisuseError, RefusalCode, RefusedError
from dure_protocols.identity import verify
from dure_protocols.job import JobFile
from dure_protocols.secagg.disclosure import Kind
from dure_protocols.wire import Writer, digest


@dataclass(frozen=True)
class Terms:
    """The part of the job file that the aggregation needs, and what the firm's own policy adds.

    firms: name to raw Ed25519 public key, the whole roster; minimum_cohort: the larger of the job's and the firm's own;
    minimum_difference, minimum_statistics_difference: the differencing guard for sums of updates and of statistics, the
    least number of firms by which two released cohorts may differ (1 allows every cohort); see `disclosure`.
    """

    job_digest: bytes
    firms: Mapping[str, bytes]
    minimum_cohort: int
    minimum_difference: int = 1
    minimum_statistics_difference: int = 2

    def __post_init__(self) -> None:
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
        return cls(job.digest(), job.identities(), cohort, minimum_difference, minimum_statistics_difference)

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

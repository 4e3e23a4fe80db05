"""What a firm let out on its data, over all its jobs, and whether one more sum may be let out (docs/protocol.md, 8).

One sum over enough firms shows no single firm. Several may: two sums over almost the same firms can be subtracted. So a
firm remembers, outside of any job, on which global models it has released and in which company, and refuses

    a model that it has released on before, in whatever round or job: the second sum would be over the same updates
    a cohort by which, together with earlier ones, some combination of sums would show one firm alone

The second rule is exact for statistics, which do not change from job to job. For updates a firm's policy says how
strict it is: between two rounds the model has moved on, so that the difference of two updates' sums shows a firm only
roughly; but sample counts do not change, and a cohort that lost one member shows that member's count.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Annotated

from dure_protocols.errors import MessageError, RefusalCode, RefusedError
from dure_protocols.fields import TEXT, Fields, fixed, many, pair
from dure_protocols.wire import Reader, Writer

MAX_MODELS = 1 << 20
MAX_COHORTS = 1 << 16

Members = tuple[str, ...]


class Kind(StrEnum):
    """What a sum is of."""

    STATISTICS = "statistics"
    UPDATE = "update"

    @classmethod
    def of(cls, round_: int) -> "Kind":
        """Round 0 sums statistics, every other updates and metrics."""
        return cls.STATISTICS if round_ == 0 else cls.UPDATE


@dataclass
class _Stored(Fields):
    models: Annotated[tuple[bytes, ...], many(fixed(32), MAX_MODELS)] = ()
    cohorts: Annotated[tuple[tuple[str, Members], ...], many(pair(TEXT, many(TEXT)), MAX_COHORTS)] = ()


class Disclosures:
    """One firm's memory of what it released. The caller stores `to_bytes()` durably before a release is sent."""

    def __init__(self) -> None:
        self._models: dict[bytes, None] = {}
        self._cohorts: dict[tuple[str, Members], None] = {}

    def check_model(self, model: bytes) -> None:
        """Refuse a global model that was released on. model: digest of parameters and normalisation, 32 bytes."""
        if model in self._models:
            raise RefusedError(RefusalCode.ALREADY_RELEASED, "this firm has contributed on this global model already")

    def check_cohort(self, kind: Kind, members: Collection[str], minimum_difference: int) -> None:
        """Refuse a cohort that, with earlier ones, would show too few firms.

        members: the firms' identity keys, hex. With a minimum difference of 1 every cohort passes; with more, a cohort
        must differ from each earlier one by so many firms or by none, and no combination of cohorts may be one firm.
        """
        if minimum_difference <= 1:
            return
        new = frozenset(members)
        earlier = [frozenset(cohort) for stored, cohort in self._cohorts if stored == kind]
        for cohort in earlier:
            if 0 < len(new ^ cohort) < minimum_difference:
                raise RefusedError(
                    RefusalCode.COHORT_TOO_SMALL,
                    f"the cohort differs by {len(new ^ cohort)} firm(s) from one whose {kind.value} sum was released;"
                    f" this firm's policy asks for {minimum_difference}",
                )
        if shows_one_firm([*earlier, new]):
            raise RefusedError(
                RefusalCode.COHORT_TOO_SMALL,
                f"together with earlier {kind.value} sums, this cohort's sum would show one firm alone",
            )

    def holds(self, kind: Kind, model: bytes, members: Iterable[str]) -> bool:
        """Whether this very release is noted."""
        return model in self._models and (kind.value, tuple(sorted(members))) in self._cohorts

    def add(self, kind: Kind, model: bytes, members: Iterable[str]) -> None:
        """Note a release. Noting it again changes nothing."""
        self.add_model(model)
        self._cohorts[kind.value, tuple(sorted(members))] = None

    def add_model(self, model: bytes) -> None:
        """Note a model alone: contributed to, over members that are not known yet."""
        self._models[model] = None

    def to_bytes(self) -> bytes:
        """Everything, to be stored. Holds no secret."""
        writer = Writer().u8(1)
        _Stored(tuple(self._models), tuple(self._cohorts)).write(writer)
        return bytes(writer)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Disclosures":
        """Read what was stored. Raises MessageError if it is damaged."""
        reader = Reader(data)
        made = cls()
        if reader.u8() != 1:
            raise RefusedError(RefusalCode.STATE_LOST, "the stored disclosures are of another version")
        stored = _Stored.read(reader)
        reader.end()
        made._models = dict.fromkeys(stored.models)
        made._cohorts = dict.fromkeys(stored.cohorts)
        kinds = set(Kind)
        # A cohort of no kind would silently count for nothing.
        are_cohorts = all(kind in kinds and sorted(set(members)) == list(members) for kind, members in stored.cohorts)
        if not are_cohorts or (len(made._models), len(made._cohorts)) != (len(stored.models), len(stored.cohorts)):
            raise MessageError("the stored disclosures are damaged: an entry is there twice, or is none")
        return made


def shows_one_firm(cohorts: Collection[frozenset[str]]) -> bool:
    """Whether some combination of the cohorts' sums is a single firm's contribution.

    A cohort is a vector of zeros and ones over the firms; a firm shows if its unit vector lies in the rational span.
    """
    firms = sorted(frozenset().union(*cohorts)) if cohorts else []
    rows = [[Fraction(firm in cohort) for firm in firms] for cohort in set(cohorts)]
    basis = _reduced(rows)
    # In reduced row echelon form a unit vector in the span is a row itself.
    return any(sum(value != 0 for value in row) == 1 for row in basis)


def _reduced(rows: list[list[Fraction]]) -> list[list[Fraction]]:
    """Reduced row echelon form, without rows of zeros."""
    done: list[list[Fraction]] = []
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((row for row in rows if row[column] != 0), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        scaled = [value / pivot[column] for value in pivot]
        rows = [_minus(row, scaled, row[column]) for row in rows]
        done = [_minus(row, scaled, row[column]) for row in done] + [scaled]
    return done


def _minus(row: list[Fraction], pivot: list[Fraction], factor: Fraction) -> list[Fraction]:
    return [value - factor * other for value, other in zip(row, pivot, strict=True)]

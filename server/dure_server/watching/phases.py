"""How long phases of finished rounds took, as histograms that grow: each round is read once."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import HistogramMetricFamily
from sqlalchemy import select

from dure_server.store import RoundState, Transaction
from dure_server.store.tables import Round

PHASE_SECONDS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper ends of the buckets; a last one takes what is longer."""


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(PHASE_SECONDS) + 1))
    total_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(PHASE_SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        so_far, buckets = 0, []
        for end, count in zip([*map(str, PHASE_SECONDS), "+Inf"], self.counts, strict=True):
            so_far += count
            buckets.append((end, float(so_far)))
        return buckets


@dataclass
class _Job:
    last_round: int = -1
    phases: dict[str, _Histogram] = field(default_factory=dict)


class PhaseTimes:
    """Histograms by job and phase. Finished rounds never change and come in order, so only newer ones are read."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def family(self, tx: Transaction, jobs: Iterable[str]) -> HistogramMetricFamily:
        """The histograms of these jobs up to now; the others are forgotten."""
        self._jobs = {name: self._jobs.get(name, _Job()) for name in jobs}
        family = HistogramMetricFamily(
            "dure_phase_seconds", "Seconds that phases of finished rounds took.", labels=["job", "phase"]
        )
        for name, job in self._jobs.items():
            newer = select(Round.number, Round.seconds).where(
                Round.job == name, Round.state == RoundState.FINISHED, Round.number > job.last_round
            )
            for number, seconds in tx.session.execute(newer.order_by(Round.number)):
                job.last_round = number
                for phase, took in seconds.items():
                    job.phases.setdefault(phase, _Histogram()).add(took)
            for phase, histogram in job.phases.items():
                family.add_metric([name, phase], histogram.buckets(), histogram.total_seconds)
        return family

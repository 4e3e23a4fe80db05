"""Plays the arms of every case: shuffled anew in each repetition, after one to warm up."""

import os
import platform
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.metadata import version

import numpy as np

from dure_lab.bench.secagg.arm import CLIP, Arm, Case, Stopwatch
from dure_lab.bench.secagg.arms import ARMS, CKKS, FLOAT32, FLOWER, FLOWER_REGULAR, OURS, SAME_CODEC, has
from dure_lab.bench.secagg.memory import ROLES, Peak, peak_of
from dure_lab.bench.secagg.ours import WAIT, WITHOUT_TAG, OursArm, UnmaskedArm
from dure_lab.bench.secagg.result import ArmResult, CaseResult, Machine, Ratios, SecAggBenchmark, Traffic
from dure_lab.bench.spread import Spread, significant
from dure_protocols.errors import MisuseError

_MEMORY_FIRMS = 8
Samples = list[dict[str, float]]
"""Seconds by part, one mapping a repetition."""


def bench_secagg(
    firms: Sequence[int],
    parameters: Sequence[int],
    *,
    repetitions: int,
    arms: Collection[str] = tuple(ARMS),
    seed: int = 1,
    memory: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> SecAggBenchmark:
    """Run every case, `firms` times `parameters`. `say` is told about progress. Raises MisuseError, DureError."""
    if unknown := set(arms) - set(ARMS):
        raise MisuseError(f"no arm is called {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    cases = [Case(num_firms, size, seed) for size in parameters for num_firms in firms]
    results = []
    for case in cases:
        say(f"{case.firms} firms, {case.parameters:,} parameters")
        results.append(
            _CaseRun(case, [name for name in ARMS if name in arms and has(case, name)]).play(repetitions, memory)
        )
    return SecAggBenchmark(machine=_machine(), seed=seed, cases=tuple(results))


class _CaseRun:
    """One case's arms and samples."""

    def __init__(self, case: Case, names: Sequence[str]) -> None:
        self._case = case
        self._arms: dict[str, Arm] = {name: ARMS[name](case) for name in names}
        self._samples: dict[str, Samples] = {name: [] for name in names}
        self._errors: dict[str, float] = {}

    def play(self, repetitions: int, memory: bool) -> CaseResult:
        """Time it, then measure memory in processes of their own."""
        order, watch = list(self._arms), Stopwatch()
        chance = random.Random(self._case.seed)  # noqa: S311
        for repetition in range(repetitions + 1):
            chance.shuffle(order)
            for name in order:
                arm = self._arms[name]
                arm.client(watch)
                arm.server(watch)
                mean = arm.decode(watch)
                if repetition == 0:
                    self._errors[name] = self._error(mean)
                    watch.taken()
                else:
                    self._samples[name].append(watch.taken())
        return self._result(repetitions, memory)

    def _error(self, mean: "np.typing.NDArray[np.float32]") -> float:
        expected = Case(self._case.firms, mean.size, self._case.seed).mean
        return significant(float(np.abs(mean - expected).max()) / CLIP)

    def _result(self, repetitions: int, memory: bool) -> CaseResult:
        ours = self._arms.get(OURS)
        plain = self._arms.get(SAME_CODEC)
        equal = None
        if isinstance(ours, OursArm) and isinstance(plain, UnmaskedArm):
            equal = ours.integers_equal(plain.sum)
        rehearsal = ours.rehearsal if isinstance(ours, OursArm) else None
        peaks = {name: self._peaks(name) if memory else (None, None) for name in self._arms}
        return CaseResult(
            firms=self._case.firms,
            parameters=self._case.parameters,
            mode=rehearsal.mode if rehearsal else "",
            repetitions=repetitions,
            ratios=self._ratios(),
            traffic=_traffic(ours, self._case) if isinstance(ours, OursArm) else None,
            sums_equal=equal,
            tag_holds=ours.is_checked if isinstance(ours, OursArm) else None,
            set_up_seconds=significant(rehearsal.set_up_seconds) if rehearsal else None,
            arms={name: self._arm(name, *peaks[name]) for name in self._arms},
        )

    def _arm(self, name: str, client: Peak | None, server: Peak | None) -> ArmResult:
        arm, samples = self._arms[name], self._samples[name]
        parts = {part: Spread.of([sample[part] for sample in samples]) for part in samples[0]}
        of_client = {part for part in parts if part in arm.client_parts or part == WITHOUT_TAG}
        return ArmResult(
            client_total=Spread.of(list(_totals(samples, arm.client_parts))),
            server_total=Spread.of(list(_totals(samples, arm.server_parts))),
            afterwards={part: spread for part, spread in parts.items() if part not in {*of_client, *arm.server_parts}},
            client={part: spread for part, spread in parts.items() if part in of_client},
            server={part: spread for part, spread in parts.items() if part in arm.server_parts},
            vector_bytes=arm.vector_bytes,
            bytes_per_parameter=significant(arm.vector_bytes / self._case.parameters),
            largest_error=self._errors[name],
            extrapolated_from=dict(arm.extrapolated_from),
            peak_client=client,
            peak_server=server,
        )

    def _ratios(self) -> Ratios:
        ours = self._arms.get(OURS)
        keystream = ours.keystream_bytes / 1e9 if isinstance(ours, OursArm) else 0.0
        return Ratios(
            secagg_over_client=self._ratio(self._client(FLOWER), self._client(OURS)),
            secagg_regular_over_client=self._ratio(self._client(FLOWER_REGULAR), self._client(OURS)),
            secagg_over_masking=self._ratio(
                self._parts(FLOWER, "quantise", "masks"), self._parts(OURS, "masks", "online")
            ),
            secagg_over_wait=self._ratio(self._client(FLOWER), self._parts(OURS, *WAIT)),
            secagg_over_server=self._ratio(self._server(FLOWER), self._server(OURS)),
            ckks_over_client=self._ratio(self._client(CKKS), self._client(OURS)),
            online_over_memcpy=self._ratio(self._part(OURS, "online"), self._part(FLOAT32, "memcpy")),
            client_over_same_codec=self._ratio(self._client(OURS), self._client(SAME_CODEC)),
            tag_share=self._tag_share(self._part(OURS, "online")),
            tag_share_of_wait=self._tag_share(self._parts(OURS, *WAIT)),
            unmask_gb_per_second=_rates(keystream, self._part(OURS, "unmask")),
            mask_gb_per_second=_rates(keystream, self._part(OURS, "masks")),
        )

    def _part(self, name: str, part: str) -> list[float]:
        return [sample[part] for sample in self._samples.get(name, []) if part in sample]

    def _parts(self, name: str, *parts: str) -> list[float]:
        return list(_totals(self._samples.get(name, []), parts))

    def _client(self, name: str) -> list[float]:
        return list(_totals(self._samples[name], self._arms[name].client_parts)) if name in self._arms else []

    def _server(self, name: str) -> list[float]:
        return list(_totals(self._samples[name], self._arms[name].server_parts)) if name in self._arms else []

    def _tag_share(self, of: Sequence[float]) -> Spread | None:
        samples = zip(self._part(OURS, "online"), self._part(OURS, WITHOUT_TAG), of, strict=False)
        shares = [(tagged - without) / whole for tagged, without, whole in samples]
        return Spread.of(shares) if shares else None

    @staticmethod
    def _ratio(over: Sequence[float], under: Sequence[float]) -> Spread | None:
        ratios = [a / b for a, b in zip(over, under, strict=False)]
        return Spread.of(ratios) if ratios else None

    def _peaks(self, name: str) -> tuple[Peak, Peak]:
        case = self._case
        if name != OURS:  # they mask and add one firm at a time, so that more firms raise no peak
            case = Case(min(case.firms, _MEMORY_FIRMS), case.parameters, case.seed)
        client, server = (peak_of(name, role, case) for role in ROLES)
        return client, server


def _totals(samples: Samples, parts: Collection[str]) -> Iterator[float]:
    return (sum(sample[part] for part in parts) for sample in samples)


def _rates(gigabytes: float, seconds: Sequence[float]) -> Spread | None:
    return Spread.of([gigabytes / each for each in seconds]) if seconds else None


def _traffic(ours: OursArm, case: Case) -> Traffic:
    rehearsal = ours.rehearsal
    last = rehearsal.rounds[-1]
    other = ours.vector_bytes - ours.packed_bytes + last.bytes_up
    return Traffic(
        bytes_per_parameter_up=significant((ours.packed_bytes + other) / case.parameters),
        vector_up=ours.packed_bytes,
        other_up=other,
        other_down=ours.vector_bytes - ours.packed_bytes + last.bytes_down,
        other_up_share=significant(other / ours.packed_bytes),
        set_up_up=rehearsal.set_up_bytes_up,
        set_up_down=rehearsal.set_up_bytes_down,
    )


def _machine() -> Machine:
    return Machine(
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        numpy=np.__version__,
        flwr=version("flwr"),
    )

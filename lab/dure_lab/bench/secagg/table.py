"""A run as the Markdown tables of docs/benchmarks.md."""

from collections.abc import Mapping, Sequence

from dure_lab.bench.secagg.memory import Peak
from dure_lab.bench.secagg.result import CaseResult, SecAggBenchmark
from dure_lab.bench.spread import Spread


def table(result: SecAggBenchmark) -> str:
    """Ratios, times, and online work with bytes and memory; a row a case each."""
    return "\n\n".join((_ratios(result.cases), _seconds(result.cases), _online(result.cases)))


def _ratios(cases: Sequence[CaseResult]) -> str:
    head = (
        *_NAME,
        "client, all of it",
        "quantise and masks",
        "SecAgg+ client / what ours waits for",
        "SecAgg+ with 2 log n neighbours, client",
        "CKKS, client",
        "server",
    )
    rows = [
        (
            *_name(case),
            _spread(case.ratios.secagg_over_client),
            _spread(case.ratios.secagg_over_masking),
            _spread(case.ratios.secagg_over_wait),
            _spread(case.ratios.secagg_regular_over_client),
            _spread(case.ratios.ckks_over_client),
            _spread(case.ratios.secagg_over_server),
        )
        for case in cases
    ]
    return _markdown(head, rows)


def _seconds(cases: Sequence[CaseResult]) -> str:
    head = (
        *_NAME,
        "mode",
        "masks, while training",
        "quantise, add, tag",
        "SHA-256",
        "sessions",
        "**client**",
        "take up the sum",
        "same codec in the clear",
        "SecAgg+ client",
        "**server**",
        "SecAgg+ server*",
    )
    rows = []
    for case in cases:
        arms = case.arms
        ours, plain, theirs = (arms.get(name) for name in ("ours", "same-codec", "secagg+"))
        if ours is None:
            continue
        parts = [_ms(ours.client[part]) for part in ("masks", "online", "digest", "session")]
        rows.append(
            (
                *_name(case),
                case.mode,
                *parts,
                _ms(ours.client_total),
                _sum_of(ours.afterwards),
                "–" if plain is None else _ms(plain.client_total),
                "–" if theirs is None else _ms(theirs.client_total),
                _ms(ours.server_total),
                "–" if theirs is None else _ms(theirs.server_total),
            )
        )
    return _markdown(head, rows)


def _online(cases: Sequence[CaseResult]) -> str:
    head = (
        *_NAME,
        "online / memcpy",
        "tag: of the wait / of the pass",
        "unmask, GB/s a core",
        "bytes a parameter up",
        "other bytes up",
        "memory beyond the vector, client / server, MiB",
        "the same, SecAgg+",
    )
    rows = [
        (
            *_name(case),
            _spread(case.ratios.online_over_memcpy),
            f"{_percent(case.ratios.tag_share_of_wait)} / {_percent(case.ratios.tag_share)} %",
            _spread(case.ratios.unmask_gb_per_second),
            f"{case.traffic.bytes_per_parameter_up:.4f}",
            f"{100 * case.traffic.other_up_share:.3f} %",
            _peaks(case, "ours"),
            _peaks(case, "secagg+"),
        )
        for case in cases
        if case.traffic is not None
    ]
    return _markdown(head, rows)


_NAME = ("firms", "size")


def _name(case: CaseResult) -> tuple[str, str]:
    millions, rest = divmod(case.parameters, 1_000_000)
    return str(case.firms), f"{case.parameters:,}" if rest else f"{millions}M"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{spread.median:.3g} ({spread.lower_quartile:.3g}–{spread.upper_quartile:.3g})"


def _percent(spread: Spread | None) -> str:
    return "–" if spread is None else f"{100 * spread.median:.0f}"


def _ms(spread: Spread) -> str:
    return f"{1000 * spread.median:.3g}"


def _sum_of(parts: Mapping[str, Spread]) -> str:
    return f"{1000 * sum(spread.median for spread in parts.values()):.3g}"


def _peaks(case: CaseResult, name: str) -> str:
    arm = case.arms.get(name)
    return "–" if arm is None else f"{_beyond(arm.peak_client)} / {_beyond(arm.peak_server)}"


def _beyond(peak: Peak | None) -> str:
    return "–" if peak is None else f"{max(0, peak.resident - peak.result) / (1 << 20):.1f}"


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

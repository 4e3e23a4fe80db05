"""A run as Markdown tables, for people and for docs/benchmarks.md."""

from collections.abc import Sequence

from dure_lab.bench.secagg.result import CaseResult, SecAggBenchmark
from dure_lab.bench.spread import Spread


def table(result: SecAggBenchmark) -> str:
    """Ratios, times, bytes and memory, a row a case."""
    return "\n\n".join((_ratios(result), _seconds(result), _traffic(result), _memory(result)))


def _ratios(result: SecAggBenchmark) -> str:
    rows = [
        (
            *_name(case),
            _spread(case.ratios.secagg_over_client),
            _spread(case.ratios.secagg_over_server),
            _spread(case.ratios.ckks_over_client),
            _spread(case.ratios.online_over_memcpy),
            _percent(case.ratios.tag_share_of_wait),
            _percent(case.ratios.tag_share),
            _spread(case.ratios.unmask_gb_per_second),
        )
        for case in result.cases
    ]
    return _markdown(
        (
            "firms",
            "parameters",
            "SecAgg+ / client",
            "SecAgg+ / server",
            "CKKS / client",
            "online / memcpy",
            "tag, % of the wait",
            "tag, % of online",
            "unmask, GB/s a core",
        ),
        rows,
    )


def _seconds(result: SecAggBenchmark) -> str:
    rows = []
    for case in result.cases:
        for name, arm in case.arms.items():
            star = "*" if arm.extrapolated_from else ""
            parts = ", ".join(f"{part} {_ms(spread)}" for part, spread in arm.client.items())
            rows.append(
                (*_name(case), name + star, _ms(arm.client_total), parts, _ms(arm.server_total), _ms(arm.decode))
            )
    return (
        _markdown(("firms", "parameters", "arm", "client, ms", "of which", "server, ms", "decode, ms"), rows)
        + "\n\n\\* extrapolated; see extrapolated_from in the JSON"
    )


def _traffic(result: SecAggBenchmark) -> str:
    rows = [
        (
            *_name(case),
            case.mode,
            f"{case.traffic.bytes_per_parameter_up:.4f}",
            f"{case.traffic.other_up:,}",
            f"{100 * case.traffic.other_up_share:.3f}",
            f"{case.traffic.other_down:,}",
            f"{case.traffic.set_up_up:,}",
        )
        for case in result.cases
        if case.traffic is not None
    ]
    return _markdown(
        ("firms", "parameters", "mode", "bytes a parameter up", "other up", "other up, %", "other down", "set-up up"),
        rows,
    )


def _memory(result: SecAggBenchmark) -> str:
    rows = [
        (
            *_name(case),
            name,
            _mib(arm.vector_bytes),
            _mib(arm.peak_client.resident - arm.peak_client.result),
            _mib(arm.peak_server.resident - arm.peak_server.result),
        )
        for case in result.cases
        for name, arm in case.arms.items()
        if arm.peak_client is not None and arm.peak_server is not None
    ]
    return _markdown(
        ("firms", "parameters", "arm", "a vector, MiB", "client beyond its vector", "server beyond the sum"), rows
    )


def _name(case: CaseResult) -> tuple[str, str]:
    return str(case.firms), f"{case.parameters:,}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{spread.median:.3g} ({spread.lower_quartile:.3g}–{spread.upper_quartile:.3g})"


def _percent(spread: Spread | None) -> str:
    return "–" if spread is None else f"{100 * spread.median:.0f}"


def _ms(spread: Spread) -> str:
    return f"{1000 * spread.median:.3g}"


def _mib(size: int) -> str:
    return f"{max(0, size) / (1 << 20):.1f}"


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

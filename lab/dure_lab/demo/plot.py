"""Draws a demo's rounds as a PNG: the public round metrics, and each firm's held-out result."""

from collections.abc import Sequence
from pathlib import Path

from dure_lab.demo.report import DemoReport, FinishedRound

COLOURS = {"alone": "#9aa5b1", "federated": "#0b6e4f", "pooled": "#3d5a80"}


def draw(report: DemoReport, rounds: Sequence[FinishedRound], metric: str, target: Path) -> Path:
    """Draw and return the file. `metric` is the round metric that was summed over the firms."""
    import matplotlib as mpl  # noqa: PLC0415  # a second of start-up that only the end of a demo needs

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    measured = [entry for entry in rounds if metric in entry.metrics]
    left.plot([e.number - 1 for e in measured], [e.metrics[metric] for e in measured], color=COLOURS["federated"])
    left.set(
        xlabel="round (0: the first model)",
        ylabel=metric.replace("_", " "),
        title="What everyone sees: the mean over all firms",
    )
    width = 0.26
    for shift, (arm, colour) in enumerate(COLOURS.items()):
        heights = [getattr(firm, arm).get(report.primary_metric) or 0.0 for firm in report.firms]
        places = [at + (shift - 1) * width for at in range(len(report.firms))]
        right.bar(places, heights, width * 0.92, color=colour, label=arm)
    right.set_xticks(range(len(report.firms)), [firm.name for firm in report.firms])
    direction = "higher is better" if report.higher_is_better else "lower is better"
    right.set(ylabel=report.primary_metric, title=f"What each firm gets on held-out rows ({direction})")
    right.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(report.data, fontweight="bold")
    figure.savefig(target, dpi=140)
    pyplot.close(figure)
    return target

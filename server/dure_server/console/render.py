"""The console's templates to HTML, and the chart that needs no script."""

from dataclasses import dataclass

from dure_pages.assets import Asset
from dure_pages.render import environment
from dure_server.console.views import JobView, Overview

FRAGMENTS = ("sentence", "job", "chart", "timeline", "rounds", "jobs", "firms")
"""Parts of the page that the event stream replaces, each by an event of its name."""
_WIDTH, _HEIGHT, _MARGIN = 640.0, 220.0, 12.0


@dataclass(frozen=True)
class Curve:
    """A metric by round, as an SVG path in a box of `width` by `height`."""

    width: float
    height: float
    path: str
    dots: list[tuple[float, float]]
    lowest: float
    highest: float
    first_round: int
    last_round: int


class Pages:
    """Renders pages and fragments. One for the process; safe to share between threads."""

    def __init__(self, assets: dict[str, Asset]) -> None:
        self._templates = environment("dure_server.console", assets)
        self._templates.globals.update(curve=curve)
        self._templates.filters.update(round_name=round_name)

    def page(self, view: Overview, events_url: str) -> str:
        """The whole first page."""
        return self._templates.get_template("page.html").render(view=view, events_url=events_url)

    def fragments(self, view: Overview) -> dict[str, str]:
        """The parts that change, by event name."""
        return {name: self._templates.get_template(f"{name}.html").render(view=view) for name in FRAGMENTS}

    def error(self, title: str, detail: str) -> str:
        """A page that says what went wrong."""
        return self._templates.get_template("error.html").render(title=title, detail=detail)


def curve(job: JobView) -> Curve | None:
    """The main metric of the finished rounds; None with fewer than two."""
    name = job.main_metric
    points = [(row.number, row.metrics[name]) for row in job.finished_rounds if name in row.metrics] if name else []
    if len(points) < 2:
        return None
    numbers, values = [number for number, _ in points], [value for _, value in points]
    span_x, span_y = (numbers[-1] - numbers[0]) or 1, (max(values) - min(values)) or 1.0
    dots = [
        (
            round(_MARGIN + (number - numbers[0]) / span_x * (_WIDTH - 2 * _MARGIN), 1),
            round(_HEIGHT - _MARGIN - (value - min(values)) / span_y * (_HEIGHT - 2 * _MARGIN), 1),
        )
        for number, value in points
    ]
    path = "M" + " L".join(f"{x} {y}" for x, y in dots)
    return Curve(_WIDTH, _HEIGHT, path, dots, min(values), max(values), numbers[0], numbers[-1])


def round_name(number: int, num_rounds: int) -> str:
    """What people call a round: the first sums statistics, and one behind the last measures the model."""
    if number == 0:
        return "Statistics"
    return f"Round {number}" if number <= num_rounds else "Closing"

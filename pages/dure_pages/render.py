"""Templates to HTML: the environment, and how values are written."""

from collections.abc import Mapping
from datetime import UTC, datetime

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from dure_pages.assets import Asset


def environment(package: str, assets: Mapping[str, Asset]) -> Environment:
    """The templates of a package, and behind them the shared ones: `layout.html`, `error.html`, `macros.html`.

    Everything is escaped, and a name that is not there is an error. Safe to share between threads.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("dure_pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(assets=assets)
    templates.filters.update(
        bytes=bytes_text,
        number=number_text,
        metric=metric_text,
        seconds=seconds_text,
        clock=clock_text,
        hour=hour_text,
    )
    return templates


def bytes_text(value: int) -> str:
    """1234567 → 1.2 MB."""
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number_text(value: float) -> str:
    """12345.0 → 12,345."""
    return f"{value:,.0f}"


def metric_text(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def seconds_text(value: float) -> str:
    """95.2 → 1 min 35 s."""
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def hour_text(value: datetime) -> str:
    """A moment without its date."""
    return value.strftime("%H:%M:%S")


def clock_text(value: datetime) -> str:
    """A moment, to the second."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""Which metrics the dashboard, the alert rules and the documentation name."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dure.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DOCUMENT = ROOT / "docs" / "watching.md"
_METRIC = re.compile(r"(?<![\w$])(?:dure|process)_[a-z_]+")
_SUFFIXES = ("_bucket", "_sum", "_count")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def alert_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Every query of the dashboard and the alerts."""
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    variables = [each["definition"] for each in dashboard()["templating"]["list"] if "definition" in each]
    return [*panels, *variables, *(rule["expr"] for rule in alert_rules())]


def metrics_in(text: str) -> set[str]:
    """Names of metrics in a query or a text, a histogram's by its own name."""
    return {_base(name) for name in _METRIC.findall(text)}


def documented() -> set[str]:
    """The metrics that the tables of docs/watching.md explain."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    first_cells = [row.split("|")[1] for row in rows]
    return set().union(*(metrics_in(cell) for cell in first_cells)) | metrics_in(_process_row(rows))


def exported(scrape: str) -> set[str]:
    """The metrics of a scrape, those without a sample included."""
    return {line.split()[2] for line in scrape.splitlines() if line.startswith("# TYPE ")}


def _process_row(rows: list[str]) -> str:
    return next(row for row in rows if row.startswith("| `process_*`"))


def _base(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)

"""The dashboard and the alert rules as Grafana and Prometheus load them; that they are exported a real run shows."""

import re

import pytest

from tests.deploy import watched


def test_every_metric_that_is_asked_for_is_explained() -> None:
    asked = set().union(*map(watched.metrics_in, watched.expressions()))
    assert len(asked) > 25
    assert asked - watched.documented() == set()


def test_the_dashboard_loads_anywhere() -> None:
    dashboard = watched.dashboard()
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert dashboard["uid"] == "dure"
    assert "id" not in dashboard  # Grafana gives it one
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in watched.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", watched.alert_rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_grave_it_is_and_what_to_do(rule: dict[str, object]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert rule["annotations"]["summary"]  # type: ignore[index]
    assert re.search(rf"^\| .*\b{rule['alert']}\b.* \| .+ \|$", watched.DOCUMENT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("expression", watched.expressions())
def test_a_query_has_as_many_brackets_open_as_closed(expression: str) -> None:
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)

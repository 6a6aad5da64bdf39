"""Alerts and dashboard: queries of metrics that there are, counted once, for one release alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.test_chart import Manifest, named
from tests.charts.tools import HELM, render
from tests.observe import prometheus
from tests.observe.dashboard import ALERTS, DASHBOARD, expressions, queries, registered, uses

needs_helm = pytest.mark.skipif(
    not HELM.exists(), reason="helm is not here: `make chart` fetches it from the package index"
)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render("--values", HERE / "values" / "walls.yaml")


def test_the_dashboards_panels_are_apart_and_have_names_of_their_own() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({p["title"] for p in panels}) >= 12
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert "uid" not in dashboard, "two releases in one Grafana would have the same"
    for panel in panels:
        ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("expression", expressions())
def test_a_query_sums_what_processes_count_and_never_what_redis_says(expression: str) -> None:
    own, wide = registered()
    found = list(uses(expression))
    assert found
    for name, aggregation in found:
        assert name in own | wide, f"no {name} is registered"
        allowed = {"max", "min", "absent"} if name in wide else {"sum"}
        assert aggregation in allowed, f"{aggregation or 'nothing'} of {name}"


def test_every_metric_is_on_the_dashboard() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    seen = {name for query in queries(dashboard) for name, _ in uses(query.expression)}
    own, wide = registered()
    # That of the last minute is for people with curl.
    assert own | wide == seen | {"stablesr_job_moves_last_minute"}


@needs_helm
def test_a_release_ships_its_dashboard_for_grafanas_sidecar(manifests: list[Manifest]) -> None:
    shipped = named(manifests, "ConfigMap", "one-stablesr-dashboard")
    assert shipped["metadata"]["labels"]["grafana_dashboard"] == "1"
    [(name, text)] = shipped["data"].items()
    # The sidecar puts those of all releases into one folder.
    assert name == "pictures-one-stablesr.json"
    dashboard = json.loads(text)
    assert dashboard["title"] == "StableSR pictures/one-stablesr"
    assert len(queries(dashboard)) == len(queries(json.loads(DASHBOARD.read_text())))


@needs_helm
def test_a_releases_queries_are_of_its_own_processes(manifests: list[Manifest]) -> None:
    [group] = named(manifests, "PrometheusRule", "one-stablesr")["spec"]["groups"]
    [text] = named(manifests, "ConfigMap", "one-stablesr-dashboard")["data"].values()
    found = [rule["expr"] for rule in group["rules"]]
    found += [query.expression for query in queries(json.loads(text))]
    for expression in found:
        selectors = expression.split("{")[1:]
        assert selectors
        for selector in selectors:
            assert selector.startswith("namespace='pictures',")
            assert "'one-stablesr" in selector or "'pictures/one-stablesr-worker'" in selector


def test_each_alert_is_tried_silent_and_firing() -> None:
    # promtool takes a name that no rule has for an alert that is silent.
    tests = yaml.safe_load((HERE / "alerts.yaml").read_text())["tests"]
    trials = [trial for test in tests for trial in test["alert_rule_test"]]
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    alerts = {rule["alert"] for rule in group["rules"]}
    for fires in (True, False):
        assert {t["alertname"] for t in trials if bool(t["exp_alerts"]) == fires} == alerts


@needs_helm
@pytest.mark.skipif(
    prometheus.find("promtool") is None,
    reason="promtool is not here: `make observe` fetches it from Debian",
)
def test_alerts_fire_when_they_must_and_only_then(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    rules = named(manifests, "PrometheusRule", "one-stablesr")["spec"]
    result = prometheus.check(tmp_path, rules, HERE / "alerts.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    rules["groups"][0]["rules"][0]["expr"] += " + 1e6"
    assert prometheus.check(tmp_path, rules, HERE / "alerts.yaml").returncode == 1

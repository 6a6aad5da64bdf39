"""The dashboard's panels, and what the queries of it and of the rules make of each metric."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from service import metrics as service_metrics
from tests.charts.tools import CHART, ROOT

DASHBOARD = CHART / "files" / "dashboard.json"
ALERTS = CHART / "files" / "alerts.yaml"
_SUFFIX = re.compile("_(total|bucket|count|sum)$")
# An aggregation, perhaps of a rate, and a metric in it.
_USE = re.compile(
    r"(?:(?P<aggregation>sum|max|min|absent)(?: by \([a-z, ]+\))? ?\()?(?:(?:rate|increase)\()?"
    r"(?P<metric>stablesr_\w+)"
)
_RATE = re.compile(r"\b(?:rate|increase)\(([^()]+)\[\$__rate_interval\]\)")


class Query(NamedTuple):
    panel: str
    legend: str
    expression: str

    @property
    def total(self) -> str:
        """The same of what was counted so far, in place of how fast it grows."""
        return _RATE.sub(r"\1", self.expression)


def queries(dashboard: dict[str, Any]) -> list[Query]:
    """Those of every panel."""
    return [
        Query(panel["title"], target["legendFormat"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def uses(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric in it, as it is registered, and what aggregates it: nothing, or sum, max ..."""
    for use in _USE.finditer(expression):
        yield _SUFFIX.sub("", use["metric"]), use["aggregation"] or ""


def expressions(dashboard: Path = DASHBOARD, alerts: Path = ALERTS) -> list[str]:
    """Those of the chart's files."""
    [group] = yaml.safe_load(alerts.read_text())["groups"]
    panels = queries(json.loads(dashboard.read_text()))
    return [rule["expr"] for rule in group["rules"]] + [query.expression for query in panels]


def registered() -> tuple[set[str], set[str]]:
    """The names in the code of what each process counts, and of what Redis says, which is the same
    at every service."""
    names = {}
    for path in ("service/metrics.py", "worker/metrics.py", "jobs/maintenance.py"):
        text = (ROOT / path).read_text()
        names[path] = set(re.findall(r'"(stablesr_\w+)"', text))
        names[path] |= {f"stablesr_{name}" for name in re.findall(r'_histogram\(\s*"(\w+)"', text)}
    _, _, of_redis = Path(service_metrics.__file__).read_text().partition("def _of(")
    wide = set(re.findall(r'"(stablesr_\w+)"', of_redis))
    wide |= {"stablesr_redis_up", "stablesr_redis_may_evict"}
    return set().union(*names.values()) - wide, wide

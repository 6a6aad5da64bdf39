"""The service seen from outside: alerts, every panel of the dashboard, and the autoscaler's rule.

    python -m tests.observe [rules] [dashboard] [scaling] [outage]

Redis, two service processes and the workers are real, under the variables that helm renders, and a
real Prometheus reads them; without names all parts run. Ends with 1 when a panel has no data, a
figure is not the true one, an alert is silent or in error, or a job did not end once.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from subprocess import CalledProcessError

from rich.console import Console
from rich.table import Table

from jobs.fair_queue import pause, resume
from tests.charts import tools
from tests.charts.test_chart import named
from tests.charts.tools import render
from tests.faults.house import until
from tests.integrations.clients.cases import BROKEN, png
from tests.observe import prometheus as programs
from tests.observe.autoscaling import Rule, Scaler
from tests.observe.dashboard import Query, queries
from tests.observe.prometheus import Prometheus, Sample
from tests.observe.release import NAME, PRESET, VALUES, Release
from tests.temporary import temporary_folder

WORKERS, SLOTS = 2, 2
GOOD, STEPS = 19, 2
SCALED_JOBS = 50
LONG = [20, 40, 60, 80, 100, 120]
SETTLE_S = 30.0
CONSOLE = Console(width=110)
Truth = Mapping[str, Mapping[str, float]]
"""Panel -> legend -> value."""


class Observation:
    """A release, a Prometheus that reads it, and what was wrong."""

    def __init__(self, release: Release, prometheus: Prometheus, faults: list[str]) -> None:
        self.release, self.prometheus, self.faults = release, prometheus, faults
        config = named(release.manifests, "ConfigMap", f"{NAME}-dashboard")
        [text] = config["data"].values()
        self.queries = queries(json.loads(text))

    def expect(self, what: str, seen: object, expected: object) -> None:
        """A fault where they differ."""
        if seen != expected:
            self.faults.append(f"{what}: {seen}, where {expected} is true")

    def compare(self, truth: Truth) -> None:
        """Holds what panels say, with what was counted in place of rates, against the truth.

        A worker tells of itself with its next heartbeat; what is counted twice never comes right.
        """
        self.prometheus.scraped()
        with suppress(AssertionError):
            until(lambda: self._figures(truth) == truth, "the figures", seconds=SETTLE_S)
        for panel, figures in self._figures(truth).items():
            self.expect(panel, figures, truth[panel])
            CONSOLE.print(f"  {panel}: {figures}")

    def _figures(self, truth: Truth) -> Truth:
        seen: dict[str, dict[str, float]] = {panel: {} for panel in truth}
        for query in self.queries:
            if query.panel in truth:
                found = _by_legend(query, self.prometheus.query(query.total))
                seen[query.panel] |= {k: v for k, v in found.items() if k in truth[query.panel]}
        return seen

    # Parts

    def dashboard(self) -> None:
        """Uploads, of which one fails and one is refused; every panel, and the alerts then."""
        release, connection = self.release, self.release.connection
        receiver = release.receiver
        for _ in range(WORKERS):
            release.start_worker()
        release.ready(WORKERS)
        pause(connection, PRESET)
        for side in range(16, 16 + 2 * GOOD, 2):
            hook = {"webhook_url": f"https://localhost:{receiver.port}/hook"} if side <= 20 else {}
            answer = release.upload(png(side, side), steps=STEPS, **hook)
            assert answer.status_code == 202, answer.text
        # Only a worker sees that.
        assert release.upload(BROKEN, steps=STEPS).status_code == 202
        refused = [release.upload(b"no image").status_code for _ in range(4)]
        assert refused == [422] * 4, refused
        CONSOLE.print("While the queue is paused:")
        count = float(GOOD + 1)
        self.compare({"Jobs that wait and run": {f"{PRESET} wait": count}})
        resume(connection, PRESET)
        release.all_ended()
        until(lambda: receiver.got.qsize() == 3, "webhooks are called")
        states = Counter(view["state"] for view in release.views(release.jobs))
        self.expect("jobs", dict(states), {"succeeded": GOOD, "failed": 1})
        CONSOLE.print("Once all have ended, with two services and two workers:")
        self.compare(
            {
                "Jobs that wait and run": {f"{PRESET} wait": 0.0, f"{PRESET} run": 0.0},
                "Workers by state": {f"{PRESET} idle": float(WORKERS)},
                "Jobs per second, by the state they came into": {
                    **{"queued": count, "processing": count},
                    **{"succeeded": float(GOOD), "failed": 1.0, "canceled": 0.0},
                },
                "Requests per second": {"/upscale": count + 4},
                "Errors per second": {"422 /upscale": 4.0},
                "Steps and tiles per second": {"steps": float(GOOD * STEPS)},
                "Webhooks per second": {"delivered": 3.0, "given_up": 0.0},
                "Departures from plans per second": {"rows": 0.0, "eager_failure": 0.0},
            }
        )
        self._panels()
        firing = {"StableSRJobsFail"}
        until(lambda: self._alerts("firing") >= firing, "the alert of a job that failed")
        self.expect("alerts that fire", self._alerts("firing"), firing)
        release.no_worker()

    def _panels(self) -> None:
        table = Table(title="The dashboard")
        table.add_column("panel")
        table.add_column("legend")
        for name in ("series", "least", "most"):
            table.add_column(name, justify="right")
        for query in self.queries:
            samples = self.prometheus.query(query.expression)
            values = [sample.value for sample in samples if math.isfinite(sample.value)]
            if not values:
                self.faults.append(f"{query.panel}, {query.legend}: no data")
            figures = [f"{each(values):.4g}" if values else "none" for each in (min, max)]
            table.add_row(query.panel, query.legend, str(len(samples)), *figures)
        CONSOLE.print(table)

    def _alerts(self, state: str) -> set[str]:
        rules = self.prometheus.rules()
        return {name for name, rule in rules.items() if rule["state"] == state}

    def health(self) -> None:
        """No rule is in error."""
        rules = self.prometheus.rules()
        until(
            lambda: all(r["health"] != "unknown" for r in self.prometheus.rules().values()),
            "all rules are evaluated",
        )
        for name, rule in self.prometheus.rules().items():
            self.expect(f"{name} ({rule.get('lastError', '')})", rule["health"], "ok")
        CONSOLE.print(f"{len(rules)} rules are loaded, {len(self.faults)} faults")

    def scaling(self) -> None:
        """No worker, many jobs, and no worker again."""
        release = self.release
        rule = Rule.of(named(release.manifests, "ScaledObject", f"{NAME}-worker-{PRESET}"))
        self.expect("threshold", rule.threshold, float(SLOTS))
        before = len(release.jobs)
        # The last ones are long, so that pods go while they run.
        for steps in [STEPS] * (SCALED_JOBS - len(LONG)) + LONG:
            assert release.upload(png(32, 32), steps=steps).status_code == 202
        self.prometheus.scraped()
        scaler = Scaler(rule, release, self.prometheus)
        scaler.run(CONSOLE.print)
        jobs = release.jobs[before:]
        views = release.views(jobs)
        done = Counter(event["job"] for event in release.logged("job done"))
        self.expect("jobs", Counter(view["state"] for view in views), {"succeeded": SCALED_JOBS})
        self.expect("ends of jobs", {done[job] for job in jobs}, {1})
        # A pod that goes has half an hour for what it has in hand.
        self.expect("attempts", Counter(view["attempt"] for view in views), {1: SCALED_JOBS})
        in_hand = sum(event["running"] for event in release.logged("leaving"))
        self.expect("jobs by the rule at first", scaler.seen[0][1], float(SCALED_JOBS))
        pods = [pods for _, _, pods, _ in scaler.seen]
        self.expect("most pods", max(pods), rule.most)
        CONSOLE.print(
            f"{len(jobs)} jobs, each done once, {in_hand} by pods that were to go; "
            f"pods: {' -> '.join(str(pods) for pods, _ in groupby(pods))}"
        )

    def outage(self) -> None:
        """Redis goes: where keys are needed /metrics is an error then, and it is noticed still."""
        self.prometheus.scraped()
        self.expect("Redis at first", "StableSRRedisDown" in self._alerts("inactive"), True)
        self.release.redis.kill()
        until(
            lambda: "StableSRRedisDown" in self._alerts("pending"), "the alert that Redis is away"
        )
        CONSOLE.print("Without Redis: StableSRRedisDown is pending")


def _by_legend(query: Query, samples: list[Sample]) -> dict[str, float]:
    """The values by their legends, as Grafana writes them."""
    found = {}
    for sample in samples:
        legend = query.legend
        for name, text in sample.labels.items():
            legend = legend.replace(f"{{{{{name}}}}}", text)
        found[legend] = sample.value
    return found


def rules(faults: list[str]) -> None:
    """promtool's tests of what helm renders."""
    with tempfile.TemporaryDirectory() as folder:
        spec = named(render("--set", VALUES), "PrometheusRule", NAME)["spec"]
        tests = Path(tools.__file__).parent / "alerts.yaml"
        result = programs.check(Path(folder), spec, tests)
    CONSOLE.print(result.stdout.strip())
    if result.returncode != 0:
        faults.append(f"promtool: {result.stderr}")


PARTS: Mapping[str, Callable[[Observation], None]] = {
    "dashboard": Observation.dashboard,
    "scaling": Observation.scaling,
    "outage": Observation.outage,
}


def run(observation: Observation, chosen: Sequence[str]) -> None:
    """The parts, up to one that does not come to its end."""
    try:
        observation.health()
        for name, part in PARTS.items():
            if name in chosen:
                part(observation)
    # Whatever goes wrong is told with the faults, and leaves the logs.
    except Exception as error:
        traceback.print_exc()
        observation.faults.append(f"{type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.observe")
    # Without any the empty list is held against them.
    parser.add_argument("parts", nargs="*", choices=["rules", *PARTS, []], metavar="PART")
    chosen: list[str] = parser.parse_args().parts or ["rules", *PARTS]
    try:
        if not tools.HELM.exists():
            tools.fetch()
        if programs.find("prometheus") is None:
            programs.fetch()
    except (CalledProcessError, OSError) as error:
        print(
            f"helm or Prometheus could not be fetched (`apt-get update`?): {error}", file=sys.stderr
        )
        return 1
    faults: list[str] = []
    if "rules" in chosen:
        rules(faults)
    if any(name in PARTS for name in chosen):
        folder = Path(tempfile.mkdtemp(prefix="stablesr-observe-"))
        with temporary_folder("observe"), Release(folder) as release:
            spec = named(release.manifests, "PrometheusRule", NAME)["spec"]
            with Prometheus(folder, release.targets(), spec) as prometheus:
                run(Observation(release, prometheus, faults), chosen)
        if faults:
            print(f"logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    for fault in faults:
        CONSOLE.print(fault, style="bold red")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

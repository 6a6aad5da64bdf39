"""What KEDA and a HorizontalPodAutoscaler do with the chart's rule, to real workers, in seconds in
place of minutes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from cli.processes import Child
from jobs.workers import Capacity
from tests.observe.prometheus import Prometheus
from tests.observe.release import WAIT_S, Release

POLL_S = 1.0
# In the chart 1800, 60 and 600 seconds.
STABILIZATION_S, PERIOD_S, IDLE_S = 4.0, 2.0, 4.0


@dataclass(frozen=True)
class Rule:
    """A ScaledObject with its only trigger, of which the metric is the average per pod."""

    query: str
    threshold: float
    least: int
    most: int

    @classmethod
    def of(cls, scaled: dict[str, Any]) -> Self:
        spec = scaled["spec"]
        [trigger] = spec["triggers"]
        what = trigger["metadata"]
        assert what["ignoreNullValues"] == "false"
        threshold = float(what["threshold"])
        return cls(what["query"], threshold, spec["minReplicaCount"], spec["maxReplicaCount"])

    def desired(self, value: float) -> int:
        """Pods for so many jobs. KEDA itself wakes the first and ends the last."""
        return min(max(math.ceil(value / self.threshold), 1), self.most)


@dataclass
class Scaler:
    """Keeps as many workers as the rule asks for; `seen` is (seconds, jobs, pods, processes)."""

    rule: Rule
    release: Release
    prometheus: Prometheus
    seen: list[tuple[float, float, int, int]] = field(default_factory=list)
    _pods: list[Child] = field(default_factory=list)
    """Those that are not to go."""
    _wishes: list[tuple[float, int]] = field(default_factory=list)
    _active_at: float = -math.inf
    _fewer_at: float = -math.inf

    def run(self, note: Callable[[str], None]) -> None:
        """From the first job on, until no worker is left.

        Raises AssertionError when it does not come to that.
        """
        began = time.monotonic()
        while len(self.seen) < 2 or self.seen[-1][1:] != (0, 0, 0):
            now = time.monotonic()
            assert now - began < WAIT_S, f"not within {WAIT_S:g} s: {self.seen}"
            [sample] = self.prometheus.query(self.rule.query)
            self.release.reap()
            self._scale(self._wish(sample.value, now), now)
            state = (sample.value, len(self._pods), len(self.release.workers))
            if not self.seen or self.seen[-1][1:] != state:
                self.seen.append((now - began, *state))
                note("{:6.1f} s {:4g} jobs {:3} pods {:3} processes".format(*self.seen[-1]))
            time.sleep(POLL_S)

    def _wish(self, jobs: float, now: float) -> int:
        if jobs > 0:
            self._active_at = now
        elif now - self._active_at >= IDLE_S:
            return self.rule.least
        if not self._pods:
            # KEDA's own step; the autoscaler goes on from there.
            self._wishes.clear()
            return min(1, self.rule.most)
        desired = self.rule.desired(jobs)
        self._wishes = [each for each in self._wishes if now - each[0] < STABILIZATION_S]
        self._wishes.append((now, desired))
        # More at once, fewer when it has been so for a while.
        return max(desired, min(len(self._pods), max(wish for _, wish in self._wishes)))

    def _scale(self, wish: int, now: float) -> None:
        if wish == 0:
            fewer = len(self._pods)
        elif wish < len(self._pods) and now - self._fewer_at >= PERIOD_S:
            fewer, self._fewer_at = 1, now
        else:
            fewer = 0
        workers = Capacity.read(self.release.connection).workers
        running = Counter({worker.pid: worker.running for worker in workers})
        for _ in range(fewer):
            # The worst that may happen: one with jobs in hand.
            busiest = max(self._pods, key=lambda pod: running[pod.pid])
            self._pods.remove(busiest)
            busiest.terminate()
        while len(self._pods) < wish:
            self._pods.append(self.release.start_worker())

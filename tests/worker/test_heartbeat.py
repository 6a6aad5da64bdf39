"""The worker's own line in the register of workers."""

from __future__ import annotations

import threading
from typing import cast

from jobs.settings import Settings
from jobs.workers import WorkerInfo, Workers
from worker.heartbeat import Registration


class SlowRegister:
    """Lets the first heartbeat be written only after it was allowed."""

    def __init__(self) -> None:
        self.begun, self.allowed = threading.Event(), threading.Event()
        self.states: list[str] = []

    def heartbeat(self, info: WorkerInfo) -> None:
        if not self.begun.is_set():
            self.begun.set()
            self.allowed.wait(10)
        self.states.append(info.state)


def test_a_slow_heartbeat_does_not_write_an_older_state_over_a_newer_one() -> None:
    register = SlowRegister()
    registration = Registration(Settings(), cast(Workers, register), "cpu", lambda: (0, 0))
    heartbeat = threading.Thread(target=registration.write)
    change = threading.Thread(target=registration.change, args=("compiling", (0, 1)))
    heartbeat.start()
    register.begun.wait(10)
    change.start()
    change.join(0.2)  # Time to overtake, if it can.
    register.allowed.set()
    heartbeat.join(10)
    change.join(10)
    assert register.states == ["starting", "compiling"]

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.errors import Interrupted
from worker.gate import Gate, GateTaken


def nothing() -> None:
    pass


def test_several_jobs_enter_at_once() -> None:
    gate, both = Gate(), threading.Barrier(2, timeout=10)

    def job() -> None:
        with gate.enter(alone=False, poll=nothing):
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job), pool.submit(job)]:
            done.result(timeout=10)


def test_a_job_that_must_be_alone_waits_for_the_others_and_keeps_newcomers_out() -> None:
    gate = Gate()
    order: list[str] = []
    first_is_in, first_may_end, alone_is_in = (threading.Event() for _ in range(3))
    newcomer_waits = threading.Event()

    def first() -> None:
        with gate.enter(alone=False, poll=nothing):
            first_is_in.set()
            first_may_end.wait(10)
            order.append("first ends")

    def alone() -> None:
        with gate.enter(alone=True, poll=nothing):
            alone_is_in.set()
            newcomer_waits.wait(10)
            order.append("alone ends")

    def newcomer() -> None:
        with gate.enter(alone=False, poll=newcomer_waits.set):
            order.append("newcomer")

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(first)]
        assert first_is_in.wait(10)
        jobs.append(pool.submit(alone))
        while gate.open:
            threading.Event().wait(0.001)
        jobs.append(pool.submit(newcomer))
        assert newcomer_waits.wait(10)
        assert not alone_is_in.is_set()
        first_may_end.set()
        for job in jobs:
            job.result(timeout=10)
    assert order == ["first ends", "alone ends", "newcomer"]
    assert gate.open


def test_of_two_jobs_that_must_be_alone_the_second_is_refused_until_the_first_has_ended() -> None:
    gate = Gate()
    with gate.enter(alone=True, poll=nothing):
        assert not gate.open
        with pytest.raises(GateTaken), gate.enter(alone=True, poll=nothing):
            pass
        assert not gate.open
    assert gate.open
    with gate.enter(alone=True, poll=nothing):
        assert not gate.open


def test_a_job_that_waits_can_be_called_away_and_leaves_the_gate_open() -> None:
    gate = Gate()

    def leave() -> None:
        raise Interrupted

    with gate.enter(alone=False, poll=nothing):
        with pytest.raises(Interrupted), gate.enter(alone=True, poll=leave):
            pass
        assert gate.open
    with gate.enter(alone=True, poll=nothing):
        assert not gate.open

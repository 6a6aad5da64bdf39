"""What must go on any Redis that is accepted, step by step, through HTTP and with real workers."""

from __future__ import annotations

import time
from typing import Any

from jobs.connection import connect
from jobs.keys import Keys
from tests.faults.house import House, Job, until

# Requests are counted, as with the defaults, but no step is refused for it.
SETTINGS: dict[str, Any] = {"uploads_per_minute": 10_000, "worker_ttl_s": 3}


def contract(house: House) -> list[str]:
    """Does all of it; the names of the steps. What goes wrong raises AssertionError."""
    steps = (_events, _wait, _replay, _cancel, _listing, _metrics, _killed_worker, _keys)
    house.worker()
    house.ready()
    for step in steps:
        try:
            step(house)
        except Exception as error:
            error.add_note(f"step {step.__name__.strip('_').replace('_', ' ')}")
            raise
    return [step.__name__.strip("_").replace("_", " ") for step in steps]


def _events(house: House) -> None:
    [job] = house.submit()
    with house.client.stream("GET", f"/jobs/{job.id}/events") as stream:
        names = [line[7:] for line in stream.iter_lines() if line.startswith("event: ")]
    assert names[-1] == "end", names
    assert "progress" in names, names
    assert house.right() == len(house.jobs)


def _wait(house: House) -> None:
    start = time.monotonic()
    answer = house.post(headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded"), answer.text
    # The job's 20 steps take a second; without word of its end a look is taken after five.
    assert time.monotonic() - start < 4.5, "word of its end did not come"
    assert "ratelimit" in answer.headers
    house.jobs.append(Job(answer.json()["id"]))


def _replay(house: House) -> None:
    headers = {"Idempotency-Key": "the-same"}
    first, again = (house.post(headers=headers) for _ in range(2))
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    house.jobs.append(Job(first.json()["id"]))
    house.all_ended(seconds=30)


def _cancel(house: House) -> None:
    running, waiting = house.submit(2, steps=400, expected="canceled")
    until(lambda: house.look(running)["state"] == "processing", "a job runs", seconds=20)
    for job in (waiting, running):
        assert house.client.delete(f"/jobs/{job.id}").status_code in (200, 202)
    house.all_ended(seconds=20)
    assert house.right() == len(house.jobs)


def _listing(house: House) -> None:
    assert sorted(house.listed()) == sorted(job.id for job in house.jobs)


def _metrics(house: House) -> None:
    text = house.client.get("/metrics").text
    assert "stablesr_redis_up 1.0" in text
    assert 'stablesr_job_moves_total{state="canceled"} 2.0' in text, text


def _killed_worker(house: House) -> None:
    house.worker()
    house.hold("denoise")
    [job] = house.submit()
    house.kill(house.held("denoise"))
    house.release("denoise")
    until(lambda: house.look(job)["attempt"] == 2, "the job runs again", seconds=30)
    house.all_ended(seconds=30)
    assert house.right() == len(house.jobs)


def _keys(house: House) -> None:
    with connect(house.settings) as connection:
        key = Keys(connection).create("kinds")[1]
    until(lambda: house.client.get("/jobs").status_code == 401, "a key is needed", seconds=10)
    house.client.headers["X-API-Key"] = key
    house.submit()
    mine = house.jobs[-1:]
    until(lambda: all(house.ended(job) for job in mine), "the key's job ends", seconds=30)
    # Jobs of others are not known to it.
    house.jobs[:] = mine
    assert house.listed() == [mine[0].id]
    assert house.right() == 1

"""What the tests let RQ run in place of the upscaling task."""

from __future__ import annotations

ran: list[str] = []


def run(job_id: str) -> None:
    ran.append(job_id)


def fail(job_id: str) -> None:
    ran.append(job_id)
    raise OSError("the disk is full")


def callback(*arguments: object) -> None:
    ran.append("callback")

"""What a job is made of beside its parameters."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from jobs.errors import QueueFull
from jobs.schema import FINAL, JobState, Progress, new_job_id


def test_a_fraction_beyond_one_is_refused() -> None:
    with pytest.raises(ValidationError):
        Progress(stage="denoise", fraction=1.5)


def test_ids_are_fresh_and_fit_rq() -> None:
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)


def test_a_job_has_ended_in_four_states() -> None:
    assert {state.value for state in FINAL} == {"succeeded", "failed", "canceled", "expired"}
    assert [state for state in JobState if not state.is_final] == ["queued", "processing"]


def test_an_error_becomes_a_problem_with_its_members() -> None:
    problem = QueueFull("Too many.", limit=3, retry_after=30).problem()
    assert problem.model_dump() == {
        "type": "queue-full",
        "title": "The job queue is full",
        "detail": "Too many.",
        "limit": 3,
        "retry_after": 30,
    }

"""The breaks: one line of the product each, and the tests that must fail for it.

The text to replace stands for the function it is in: where it is not there any more, or twice, the
run fails, and the break has to be written anew.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """`path` with `text` replaced by `instead`; `tests` and `names` are pytest's path and -k."""

    what: str
    path: str
    text: str
    instead: str
    tests: str
    names: str


BREAKS = (
    Break(
        "images of any size are taken",
        path="jobs/formats.py",
        text="    if pixels > max_pixels:\n",
        instead="    if False:\n",
        tests="tests/hostile/test_uploads.py",
        names="20000 or 60000 or 65500",
    ),
    Break(
        "uploads of any length are taken",
        path="service/uploads.py",
        text="        if count > limit:\n",
        instead="        if False:\n",
        tests="tests/service/test_uploads.py",
        names="without_a_length",
    ),
    Break(
        "a client may ask once more than the limit",
        path="service/ratelimit.py",
        text="local remaining = limit - redis",
        instead="local remaining = limit + 1 - redis",
        tests="tests/service/test_ratelimit.py",
        names="one_too_many or upload_too_many",
    ),
    Break(
        "jobs of others can be looked at",
        path="jobs/queue.py",
        text="job_read(job_id, answer)\n        if job.owner != owner:\n",
        instead="job_read(job_id, answer)\n        if False:\n",
        tests="tests/service/test_admission.py",
        names="another_keys_job",
    ),
    Break(
        "a repeated request stays unanswered",
        path="jobs/queue.py",
        text="pipe.set(claim.key, claim.value, ex",
        instead="pipe.set(claim.key, claim.lease, ex",
        tests="tests/service/test_submission.py",
        names="same_request_again",
    ),
    Break(
        "an image whose job never comes stays",
        path="service/submission.py",
        text="        services.queue.announce(job_id)\n",
        instead="",
        tests="tests/service/test_submission.py",
        names="image_without_a_job",
    ),
    Break(
        "a webhook's signature leaves the time out",
        path="service/webhooks.py",
        text='content = f"{id}.{timestamp}.".encode() + body',
        instead='content = f"{id}.".encode() + body',
        tests="tests/service/test_webhooks.py",
        names="signature",
    ),
    Break(
        "every request waits for a Redis that hangs",
        path="jobs/connection.py",
        text="self._until = time.monotonic() + self._silent_s",
        instead="self._until = 0.0",
        tests="tests/jobs/test_connection.py",
        names="breaker",
    ),
    Break(
        "attempts are not counted",
        path="jobs/transition.lua",
        text="  redis.call('HINCRBY', KEYS[1], 'attempt', 1)\n",
        instead="",
        tests="tests/jobs/test_job_store.py",
        names="counts_its_attempts",
    ),
    Break(
        "a canceled job runs on",
        path="worker/attempt.py",
        text="        if job.cancel_requested:\n",
        instead="        if False:\n",
        tests="tests/worker/test_supervisor.py",
        names="canceled_stops",
    ),
    Break(
        "a lease is never renewed",
        path="worker/supervisor.py",
        text='try_to("renew a lease", worker.beat)',
        instead="pass",
        tests="tests/worker/test_supervisor.py",
        names="longer_than_a_lease",
    ),
    Break(
        "a result that is stored is made again",
        path="worker/tasks.py",
        text=", job) or _upscale(attempt, job)",
        instead=", job) and None or _upscale(attempt, job)",
        tests="tests/worker/test_tasks.py",
        names="earlier_attempt",
    ),
    Break(
        "a tile counts as much at its border",
        path="models/tiling.py",
        text="+= weights * tile",
        instead="+= tile",
        tests="tests/models/test_tiling.py",
        names="joining",
    ),
    Break(
        "a download may have other bytes",
        path="client/stablesr_client/files.py",
        text="elif self._result.sha256 in (None, digest):",
        instead="elif digest:",
        tests="tests/client/test_files.py",
        names="other_bytes",
    ),
)

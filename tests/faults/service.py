"""`python -m tests.faults.service`: the service, which dies between storing and queueing an image.

It does so for an upload whose file is named `fatal.png`; every other one is served as ever. Where
UPLOAD_GRACE_S is set, images without a job are removed after so many seconds.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import jobs.maintenance
import jobs.queue
from jobs.queue import JobQueue
from jobs.schema import ImageInfo, Job
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from service.run import main

submit = JobQueue.submit


def die_or_submit(
    queue: JobQueue, job_id: str, parameters: UpscaleParameters, image: ImageInfo, *more: Any
) -> Job:
    if image.filename == "fatal.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return submit(queue, job_id, parameters, image, *more)


if __name__ == "__main__":
    JobQueue.submit = die_or_submit  # type: ignore[method-assign, assignment]  # a fault, put in by hand
    if "UPLOAD_GRACE_S" in os.environ:
        for module in (jobs.queue, jobs.maintenance):
            module.UPLOAD_GRACE_S = float(os.environ["UPLOAD_GRACE_S"])  # type: ignore[attr-defined]  # a fault as well
    main(Settings())

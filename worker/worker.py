"""RQ's worker loop, as a thread that runs long jobs on a shared device.

RQ's own workers fork for each job (CUDA does not survive that), load the model anew for each, or
(SimpleWorker) run the job where the loop runs, but without a heartbeat meanwhile. This one is a
SimpleWorker whose lease on a job is kept by `worker.pulse`, whose time limits are kept between
steps (`Run.check`) and by `worker.watchdog`, and whose maintenance is `jobs.rq_adapter`'s.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import structlog
from redis import Redis
from rq import Queue, Retry, SimpleWorker
from rq.callbacks import execute_failure_callback
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.job_lifecycle import format_exc_info
from rq.utils import now
from rq.worker import WorkerStatus

from jobs.rq_adapter import ATTEMPTS, SERIALIZER, NoDeathPenalty, TaskJob, run_again
from worker.context import Process, Run, entered
from worker.errors import LeaseLost

__all__ = ["SlotWorker", "Work"]

# Seconds that one wait for a job lasts at most: how soon an idle slot notices that it should end.
IDLE_S = 1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Work:
    """What a slot is at: the run, and RQ's names for it."""

    run: Run
    job: Job
    execution: Execution


class SlotWorker(SimpleWorker):
    """The loop of one slot. Made and run on the slot's thread; `beat`, `leave` and `put_back` are
    called from others."""

    death_penalty_class = NoDeathPenalty
    # RQ's loop waits up to so many seconds between two attempts to reach Redis.
    max_connection_wait_time = 5.0

    def __init__(self, process: Process, queue: Queue, connection: Redis, name: str) -> None:
        settings = process.settings
        super().__init__(
            [queue],
            name=name,
            connection=connection,
            job_class=TaskJob,
            serializer=SERIALIZER,
            worker_ttl=settings.worker_ttl_s,
            log_job_description=False,
        )
        self._process = process
        self._queue = queue
        self.work_in_hand: Work | None = None

    # What RQ would do in this process but must not

    def _install_signal_handlers(self) -> None:
        """None: only the main thread can have them, and `worker.supervisor` has."""

    def subscribe(self) -> None:
        """To nothing: jobs are canceled through their record, not by RQ's commands."""

    def unsubscribe(self) -> None:
        pass

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Never: `jobs.rq_adapter` also runs when every slot is busy."""
        return False

    # The loop

    def leave(self) -> None:
        """End the loop after the job in hand, which ends at its next step."""
        self._stop_requested = True

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """The next job; in short waits, because RQ's own wait does not look whether to stop."""
        while not self._stop_requested:
            # While a job runs alone, further jobs are better left to other workers.
            if not self._process.device.open:
                self._process.leaving.wait(IDLE_S / 5)
                continue
            found = super().dequeue_job_and_maintain_ttl(IDLE_S, max_idle_time=IDLE_S)
            if found is not None:
                return found
        raise StopRequested

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job on this thread."""
        execution = self.prepare_execution(job)
        attempts_left = job.retries_left or 0
        run = Run(
            process=self._process,
            job_id=job.id,
            worker=self.name,
            alone=attempts_left < ATTEMPTS - 1,
            last=attempts_left == 0,
        )
        self.work_in_hand = Work(run, job, execution)
        try:
            with entered(run):
                self.perform_job(job, queue, execution)
        finally:
            self.work_in_hand = None
        self.set_state(WorkerStatus.IDLE)

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Run the task and tell RQ how it ended.

        As RQ's, except that a run whose job is somebody else's by now tells nothing, and that an
        error while telling is raised instead of being taken for the task's.
        """
        assert self.work_in_hand is not None
        run = self.work_in_hand.run
        self.prepare_job_execution(job, remove_from_intermediate_queue=True)
        job.started_at = now()
        outcome: Any = None
        try:
            outcome = job.perform()
            failure = None
        except LeaseLost as error:
            log.warning("job dropped", job=job.id, reason=str(error))
            self._drop(job, execution)
            return False
        # Whatever a task raises is its attempt's failure and not this loop's.
        except Exception:
            failure = sys.exc_info()
        if not run.settle():
            self._drop(job, execution)
            return False
        if failure is not None:
            self._tell_failure(job, queue, execution, failure)
            return False
        self.handle_execution_ended(job, queue, self._process.settings.worker_ttl_s)
        if isinstance(outcome, Retry):
            self._tell_retry(job, queue, execution, outcome)
        else:
            self.handle_job_success(job, queue, queue.started_job_registry, execution)
        return True

    def _drop(self, job: Job, execution: Execution) -> None:
        """Forget this execution and leave the job, which has another, as it is."""
        with self.connection.pipeline() as pipe:
            self.cleanup_execution(job, pipeline=pipe, execution=execution)
            pipe.execute()

    def _tell_retry(self, job: Job, queue: Queue, execution: Execution, retry: Retry) -> None:
        self.handle_job_retry(job, queue, retry, queue.started_job_registry, execution)

    def _tell_failure(self, job: Job, queue: Queue, execution: Execution, failure: Any) -> None:
        self.handle_execution_ended(job, queue, self._process.settings.worker_ttl_s)
        try:
            execute_failure_callback(job, self.death_penalty_class, *failure)
        # The callback moves the record. Should it fail, RQ's part is done nevertheless and the
        # sweep of jobs.maintenance brings the record in line.
        except Exception:
            log.exception("failure callback failed", job=job.id)
        self.handle_job_failure(
            job,
            queue,
            started_job_registry=queue.started_job_registry,
            exc_string=format_exc_info(failure),
            execution=execution,
        )

    # From other threads

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds that a lease on a job lasts: a worker that is silent for so long is lost."""
        return self._process.settings.worker_ttl_s

    def beat(self) -> None:
        """Keep the registration and the lease on the job in hand; see whether it still holds."""
        if self.birth_date is None:
            # RQ would take the heartbeat of a worker that is not registered yet for another's.
            return
        work = self.work_in_hand
        if work is None:
            self.heartbeat()
            return
        self.maintain_heartbeats(work.job, work.execution)
        key = work.job.started_job_registry.key
        held = self.connection.zscore(key, work.execution.composite_key) is not None
        if not held and work is self.work_in_hand:
            work.run.lost.set()

    def let_go(self) -> None:
        """Let the lease on the job in hand run out now, for a process that is about to die."""
        work = self.work_in_hand
        if work is not None and not work.run.lost.is_set():
            key = work.job.started_job_registry.key
            self.connection.zadd(key, {work.execution.composite_key: 1}, xx=True)

    def put_back(self) -> bool:
        """Put the job in hand back although its step has not ended; False when it is settled.

        Only for a process that ends right afterwards: the slot's thread goes on to the end of its
        step and then drops what it has.
        """
        work = self.work_in_hand
        if work is None or not work.run.settle("supervisor"):
            return False
        self._process.quick_records.requeue(work.job.id, worker=self.name)
        self.handle_execution_ended(work.job, self._queue, self._process.settings.worker_ttl_s)
        self._tell_retry(work.job, self._queue, work.execution, run_again())
        return True

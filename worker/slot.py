"""A slot: room for one job at a time, on a thread of its own, in RQ's worker loop.

RQ's own workers fork for each job (CUDA does not survive that), load the model anew for each, or
(SimpleWorker) run the job where the loop runs, but without a heartbeat meanwhile. This one is a
SimpleWorker whose lease on a job is kept by `worker.heartbeat`, whose time limits are kept between
steps (`Attempt.check`) and by its watchdog, and whose maintenance is `jobs.rq_adapter`'s.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

import structlog
from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue, SimpleWorker
from rq.callbacks import execute_failure_callback
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.job_lifecycle import format_exc_info
from rq.utils import now
from rq.worker import WorkerStatus

from jobs.fair_queue import dispatch
from jobs.rq_adapter import GIVEN_UP, SERIALIZER, NoDeathPenalty, TaskJob, requeue_due, run_again
from worker.attempt import Attempt, LeaseLost, Process
from worker.heartbeat import try_to

# Seconds that one wait for a job lasts at most: how soon an idle slot notices that it should end.
IDLE_S = 1
NOTES_TTL_S = 86_400
# A loop that ran so long was well: the next one begins soon after it.
STEADY_S = 60.0
LONGEST_WAIT_S = 8.0

log = structlog.get_logger(__name__)


class Work(NamedTuple):
    """The job in hand: our attempt, and RQ's names for it."""

    attempt: Attempt
    job: Job
    execution: Execution


class SlotWorker(SimpleWorker):
    """The loop of one slot, run on the slot's thread; `beat`, `let_go` and `put_back` are called
    from others."""

    death_penalty_class = NoDeathPenalty
    # RQ's loop waits up to so many seconds between two attempts to reach Redis.
    max_connection_wait_time = 5.0
    # `jobs.rq_adapter`'s also runs when every slot is busy.
    should_run_maintenance_tasks = False

    def __init__(self, process: Process, queue: Queue, name: str) -> None:
        super().__init__(
            [queue],
            name=name,
            connection=queue.connection,
            job_class=TaskJob,
            serializer=SERIALIZER,
            worker_ttl=process.settings.worker_ttl_s,
            log_job_description=False,
        )
        self._process = process
        self._queue = queue
        self.work_in_hand: Work | None = None

    @property
    def _stop_requested(self) -> bool:
        return self._process.leaving.is_set()

    @_stop_requested.setter
    def _stop_requested(self, value: bool) -> None:
        """RQ's own constructor and signal handlers set it."""

    def _install_signal_handlers(self) -> None:
        """None: only the main thread can have them, and `worker.supervisor` has."""

    def subscribe(self) -> None:
        """To nothing: jobs are canceled through their record, not by RQ's commands."""

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds that RQ's notes on an execution outlive a heartbeat: longer than outages, after
        which RQ would stumble over missing ones. How long a lease lasts the job knows."""
        return NOTES_TTL_S

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """The next job; in short waits, because RQ's own wait does not look whether to stop."""
        while not self._stop_requested:
            # While a job runs alone, further jobs are better left to other workers.
            if not self._process.device.open:
                self._process.leaving.wait(IDLE_S / 5)
                continue
            try_to("queue jobs whose pause is over", lambda: requeue_due(self._queue))
            if not self._dispatch():
                self._process.leaving.wait(IDLE_S)
                continue
            job = super().dequeue_job_and_maintain_ttl(IDLE_S, max_idle_time=IDLE_S)
            if job is not None:
                # For the next slot that is idle.
                self._dispatch()
                return job
        raise StopRequested

    def _dispatch(self) -> bool:
        """Has the next job ready to be taken; False while the preset is paused."""
        # RQ's own loop is the one that waits for a Redis that is away.
        with suppress(ConnectionError, TimeoutError):
            return dispatch(self.connection, self._process.settings.preset)
        return True

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job on this thread."""
        assert isinstance(job, TaskJob)  # our job_class
        job.lease_s = self._process.settings.lease_s
        attempt = Attempt(
            self._process, job.id, self.name, alone=job.failures > 0, last=not job.retries_left
        )
        self.work_in_hand = Work(attempt, job, self.prepare_execution(job))
        try:
            self._perform(self.work_in_hand)
        finally:
            self.work_in_hand = None
        self.set_state(WorkerStatus.IDLE)

    def _perform(self, work: Work) -> None:
        """Run the task and tell RQ how it ended.

        As RQ's `perform_job`, except that an attempt whose job has another one by now tells
        nothing, and that an error while telling is raised instead of being taken for the task's.
        """
        attempt, job, execution = work
        self.prepare_job_execution(job, remove_from_intermediate_queue=True)
        job.started_at = now()
        is_to_run_again = False
        failure: Any = None
        try:
            try:
                is_to_run_again = job.func(attempt)
            except LeaseLost:
                raise
            # Every error of a task is its attempt's failure and not this loop's.
            except Exception:
                failure = sys.exc_info()
            attempt.claim()
        except LeaseLost as error:
            # The job has another execution: this one is forgotten, the job stays as it is.
            log.warning("job dropped", job=job.id, reason=str(error))
            with self.connection.pipeline() as pipe:
                self.cleanup_execution(job, pipeline=pipe, execution=execution)
                pipe.execute()
            return
        self.handle_execution_ended(job, self._queue, self.worker_ttl)
        if failure is not None:
            try:
                execute_failure_callback(job, self.death_penalty_class, *failure)
            # The callback moves the record. Should it fail, RQ's part is done nevertheless and the
            # sweep of jobs.maintenance brings the record in line.
            except Exception:
                log.exception("failure callback failed", job=job.id)
            reason = format_exc_info(failure)
            self.handle_job_failure(job, self._queue, exc_string=reason, execution=execution)
        elif is_to_run_again:
            self._run_again(work)
        else:
            registry = job.started_job_registry
            self.handle_job_success(job, self._queue, registry, execution)

    def _run_again(self, work: Work) -> None:
        registry = work.job.started_job_registry
        self.handle_job_retry(work.job, self._queue, run_again(), registry, work.execution)

    # From other threads

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
        # The sorted set of leases: when each execution's ends.
        leases = work.job.started_job_registry.key
        lease = self.connection.zscore(leases, work.execution.composite_key)
        if lease is None and work is self.work_in_hand:
            work.attempt.lease_lost = True

    def let_go(self) -> None:
        """Let the lease on the job in hand run out now, for a process that is about to die."""
        work = self.work_in_hand
        if work is not None and not work.attempt.lease_lost:
            leases = work.job.started_job_registry.key
            self.connection.zadd(leases, {work.execution.composite_key: GIVEN_UP}, xx=True)

    def put_back(self) -> None:
        """Put the job in hand back although its step has not ended, unless it is settled.

        Only for a process that ends right afterwards: the slot's thread goes on to the end of its
        step and then drops what it has.
        """
        work = self.work_in_hand
        if work is not None and work.attempt.take_back():
            self._process.records.requeue(work.job.id, worker=self.name)
            self.handle_execution_ended(work.job, self._queue, self.worker_ttl)
            self._run_again(work)


class Slot(threading.Thread):
    """Runs worker loops, one after the other until the process leaves.

    A loop ends when Redis goes away in the middle of something; the next one starts afresh.
    """

    def __init__(self, process: Process, queue: Queue, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._process = process
        self._queue = queue
        self.worker: SlotWorker | None = None

    @property
    def work_in_hand(self) -> Work | None:
        worker = self.worker
        return worker.work_in_hand if worker is not None else None

    @property
    def settles(self) -> bool:
        """Whether it is saying how the job in hand ended."""
        work = self.work_in_hand
        return work is not None and work.attempt.settled

    def run(self) -> None:
        loops, failures = 0, 0
        while not self._process.leaving.is_set():
            start = time.monotonic()
            try:
                self.worker = SlotWorker(self._process, self._queue, f"{self.name}.{loops}")
                self.worker.work(logging_level=None)
            # Redis that cannot be reached when a loop begins or ends, mostly; in any case the slot
            # must not be lost to it.
            except Exception as error:
                log.warning("worker loop ended", slot=self.name, reason=str(error))
            finally:
                self.worker = None
            loops += 1
            failures = 0 if time.monotonic() - start > STEADY_S else failures + 1
            self._process.leaving.wait(min(0.5 * 2**failures, LONGEST_WAIT_S))

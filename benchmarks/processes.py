"""Work in processes of its own, so that its memory is its own and it can be ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")


def alone(run: Callable[[A], T], task: A) -> T:
    """`run(task)` in a process of its own.

    Raises:
        BrokenProcessPool: it was killed, as a rule because memory ran out.
    """
    # Not a multiprocessing.Pool, which waits for ever for the answer of a killed process.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run, task).result()


def run_part(part: Callable[[A], Iterable[T]], argument: A, limit_s: float) -> tuple[list[T], str]:
    """What a part yields in a process of its own, and why it ended early, or nothing.

    At its limit the process is killed, with those that it has started.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(part, argument, sender))
    process.start()
    sender.close()
    deadline = time.monotonic() + limit_s
    items: list[T] = []
    late = f"not done after {limit_s:.0f} s"
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            reason, item = receiver.recv()
            if reason is not None:
                return items, reason
            items.append(item)
        return items, late
    except EOFError:
        process.join()
        return items, f"its process ended with {process.exitcode}"
    finally:
        _end(process)


def _child(part: Callable[[A], Iterable[T]], argument: A, sender: Connection) -> None:
    # A group of its own: a compiler's processes end with it.
    os.setpgid(0, 0)
    try:
        for item in part(argument):
            sender.send((None, item))
        sender.send(("", None))
    # A part's errors are a line of the table.
    except Exception as error:
        traceback.print_exc()
        sender.send((f"{type(error).__name__}: {error}".splitlines()[0], None))


def _end(process: BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It has no group yet.
            process.kill()
    process.join()

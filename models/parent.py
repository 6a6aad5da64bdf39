"""Processes that this program starts end with it."""

from __future__ import annotations

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """From now on a process that another one started ends when that one does, however it does.

    A thread awaits that, so whatever else happens here may take as long as it likes, if it lets
    other threads run meanwhile.

    Raises:
        ValueError: `multiprocessing` has not started this process.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("No process of this program started this one.")

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()

"""What other processes run in the tests of `worker.aside`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from jobs.settings import Settings
from models.parent import end_with_parent

__all__ = ["fails", "in_another_process", "stays", "waits"]

POLL_S = 0.02


def waits(settings: Settings, done: Path) -> None:
    """Until the test says so by a file."""
    done.with_name("began").touch()
    while not done.with_name("go").exists():
        time.sleep(POLL_S)
    done.touch()


def fails(settings: Settings, done: Path) -> None:
    sys.exit(7)


def stays(settings: Settings, done: Path) -> None:
    """Until the process that started it is gone."""
    end_with_parent()
    pid = done.with_name("part")
    pid.write_text(str(os.getpid()))
    pid.rename(done.with_name("pid"))
    time.sleep(3600)


def in_another_process(settings: Settings, done: Path) -> None:
    """All that a worker's does, but for torch's compiler, which takes minutes."""
    import torch

    from tests.models.compiler import Compiler
    from worker.aside import _compile

    compiler = Compiler()
    torch.compile = compiler  # type: ignore[assignment]  # that of a process made for it
    try:
        _compile(settings, done)
    finally:
        done.with_name("compiled").write_text(" ".join(compiler.made))

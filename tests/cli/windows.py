"""The command in a process that lacks what Windows lacks, and has what stands in for it there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Libraries look at the system when they are imported, and are made for Windows anyway: they come
# first. What the standard library itself needs of this system is left to it.
WINDOWS = """
import asyncio, ctypes, json, os, signal, sys, types
import anyio._backends._asyncio, httpx, PIL.Image, pydantic_settings, redis, rich.progress, typer
import fcntl
if sys.argv[1] == "local":
    import diffusers.models.attention, pyvips, safetensors.torch, torch
flock = fcntl.flock
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1"):
    delattr(signal, name)
for name in ("O_DIRECTORY", "fork", "geteuid", "getuid", "killpg", "mkfifo", "preadv", "pwritev",
             "sched_getaffinity", "setsid", "sysconf"):
    delattr(os, name)

class CDLL(ctypes.CDLL):
    def __init__(self, name, *more, **options):
        assert name is not None, "there is no such library on Windows"
        super().__init__(name, *more, **options)

def locking(file, mode, count):
    assert mode == msvcrt.LK_NBLCK and count == 1
    assert os.lseek(file, 0, os.SEEK_CUR) == 2**30
    try:
        flock(file, 6)  # LOCK_EX | LOCK_NB
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None

def no_handlers(*_):
    raise NotImplementedError

ctypes.CDLL = CDLL
sys.modules["msvcrt"] = msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
asyncio.SelectorEventLoop.add_signal_handler = no_handlers
sys.platform = "win32"
if sys.argv[1] == "local":
    import models.memory, pathlib
    models.memory._PROC = pathlib.Path("/nowhere")
from cli.main import app
sys.exit(max(app(arguments, standalone_mode=False) or 0 for arguments in json.loads(sys.argv[2])))
"""


def on_windows(
    *commands: list[str | Path], how: str = "server"
) -> subprocess.CompletedProcess[str]:
    """The end of these commands, one after the other."""
    command = [sys.executable, "-c", WINDOWS, how, json.dumps(commands, default=str)]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)

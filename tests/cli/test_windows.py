"""`stablesr upscale` where the system is Windows, in a process that lacks what Windows lacks."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.fake_service import FakeService
from tests.cli.folders import last_states, names

# Libraries look at the system when they are imported, and are made for Windows anyway: they come
# first. What the standard library itself needs of this system is left to it.
WINDOWS = """
import asyncio, ctypes, json, os, signal, sys, types
import anyio._backends._asyncio, httpx, PIL.Image, pydantic_settings, rich.progress, typer
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


def stablesr(*commands: list[str | Path], how: str = "server") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WINDOWS, how, json.dumps(commands, default=str)]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)


def test_a_folder_goes_through_a_server_and_is_resumed(
    photos: Path, out: Path, service: FakeService
) -> None:
    command: list[str | Path] = ["upscale", photos, out, "--server", service.url]
    ended = stablesr(command, command)
    assert ended.returncode == 0, ended.stderr
    assert "0 images to do, 3 done before" in ended.stderr
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    assert set(last_states(out).values()) == {"done"}
    assert len(service.uploads) == 3


def test_only_one_run_works_in_a_folder(photos: Path, out: Path, service: FakeService) -> None:
    out.mkdir()
    with (out / ".stablesr.jsonl").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = stablesr(["upscale", photos, out, "--server", service.url])
    assert ended.returncode == 3
    assert "Another run is at work" in ended.stderr


def test_a_file_goes_through_a_server(image: Path, service: FakeService) -> None:
    target = image.parent / "out.png"
    ended = stablesr(["upscale", image, target, "--server", service.url, "--seed", "1"])
    assert ended.returncode == 0, ended.stderr
    assert target.read_bytes().startswith(b"upscaled")


def test_a_file_and_a_folder_are_upscaled_there(image: Path, tmp_path: Path) -> None:
    few = ("--steps", "1", "--fidelity-weight", "0", "--scale", "1")
    photos = tmp_path / "photos"
    photos.mkdir()
    image = image.rename(photos / "in.png")
    ended = stablesr(
        ["upscale", image, tmp_path / "out.png", *few],
        ["upscale", photos, tmp_path / "out", *few],
        how="local",
    )
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "out.png") as one, Image.open(tmp_path / "out" / "in.png") as other:
        assert one.size == other.size == (12, 9)


@pytest.mark.parametrize("command", ["up", "serve", "worker"])
def test_what_cannot_run_there_says_so_in_one_sentence(command: str) -> None:
    ended = stablesr([command])
    assert ended.returncode == 8
    assert f"`stablesr {command}` does not run on Windows" in ended.stderr
    assert "Traceback" not in ended.stderr

"""Compiling beside the jobs: who computes how meanwhile, and what becomes of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing
import torch

import worker.aside
from jobs.settings import Settings
from models.checkpoints.folder import random_networks
from models.compiled import Compiling
from models.folding import fold
from models.memory import Memory
from models.pipeline import StableSR
from models.plan import Resources
from models.sampling import StepRequest
from tests.models import narrow
from tests.models.compiler import Compiler
from tests.worker import compiling
from tests.worker.processes import CONTEXT, wait_for
from worker.aside import Aside, warmed
from worker.gate import Gate
from worker.loading import Loaded

CPU = torch.device("cpu")
TILE = torch.zeros(1, 4, 8, 8)
REQUEST = StepRequest(TILE, TILE, 5, None, 0, 1)
FREE = Memory(0, 64 * 2**30, 0)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "cache").mkdir()
    return Settings(compile="on", compile_cache=tmp_path / "cache", device="cpu")


@pytest.fixture
def done(settings: Settings) -> Path:
    return settings.compile_cache / "complete"


def model(mode: str = "on", *, offload: bool = False) -> StableSR:
    networks = fold(random_networks(narrow.CONFIG, CPU, torch.float32))
    wanted = Compiling("on" if mode == "on" else "off")
    given = Resources(tile_batch=2, offload=offload)
    return StableSR(networks, narrow.PRESET, CPU, torch.float32, given, wanted)


@pytest.fixture
def started() -> Iterator[Callable[[Aside, Gate], list[str]]]:
    """Starts them, and ends them with the test; the lists have why a device was lost."""
    made: list[Aside] = []

    def start(aside: Aside, gate: Gate) -> list[str]:
        lost: list[str] = []
        made.append(aside)
        aside.start(gate, lost.append)
        return lost

    yield start
    for aside in made:
        aside.stop()
        assert aside.ended(timeout_s=10)


Start = Callable[[Aside, Gate], list[str]]


def nothing() -> None:
    pass


def test_jobs_are_computed_eagerly_until_another_process_has_compiled_and_none_runs(
    compiler: Compiler, settings: Settings, done: Path, started: Start
) -> None:
    sr, gate = model(), Gate()
    sr.defer()
    aside = Aside(sr, settings, done, compiling.waits)
    started(aside, gate)
    wait_for(done.with_name("began").exists, "the other process runs")
    with gate.enter(alone=False, poll=nothing):
        for _ in range(2):
            sr.predict([REQUEST])
        assert sr.departures == {"eager_compiling": 2}
        done.with_name("go").touch()
        wait_for(done.exists, "the other process is done")
        assert not aside.ended(timeout_s=0.5)
        # Newcomers are let in meanwhile.
        assert gate.open
        sr.predict([REQUEST])
        assert compiler.made == []
    assert aside.ended(timeout_s=10)
    assert compiler.made == ["whole_1", "whole_2"]
    sr.predict([REQUEST])
    assert sr.departures == {"eager_compiling": 3}
    assert gate.open


def test_where_jobs_never_pause_no_further_one_is_begun_in_the_end(
    compiler: Compiler,
    settings: Settings,
    done: Path,
    started: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker.aside, "PATIENCE_S", 0.2)
    sr, gate = model(), Gate()
    sr.defer()
    done.with_name("go").touch()
    with gate.enter(alone=False, poll=nothing):
        aside = Aside(sr, settings, done, compiling.waits)
        started(aside, gate)
        wait_for(lambda: not gate.open, "the door is shut")
        assert compiler.made == []
    assert aside.ended(timeout_s=10)
    assert compiler.made == ["whole_1", "whole_2"]


def test_a_job_that_must_be_alone_goes_first(
    compiler: Compiler, settings: Settings, done: Path, started: Start
) -> None:
    sr, gate = model(), Gate()
    sr.defer()
    done.with_name("go").touch()
    aside = Aside(sr, settings, done, compiling.waits)
    with gate.enter(alone=True, poll=nothing):
        started(aside, gate)
        wait_for(done.exists, "the other process is done")
        assert not aside.ended(timeout_s=0.5)
        assert compiler.made == []
    assert aside.ended(timeout_s=10)
    assert compiler.made == ["whole_1", "whole_2"]


def test_a_process_that_fails_is_said_and_this_one_compiles(
    compiler: Compiler, settings: Settings, done: Path, started: Start
) -> None:
    sr = model()
    sr.defer()
    aside = Aside(sr, settings, done, compiling.fails)
    with structlog.testing.capture_logs() as said:
        started(aside, Gate())
        assert aside.ended(timeout_s=30)
    [warning] = [line for line in said if line["log_level"] == "warning"]
    assert warning["exit_code"] == 7
    assert compiler.made == ["whole_1", "whole_2"]


@pytest.mark.parametrize("message", ["no memory", "CUDA error: an illegal memory access"])
def test_jobs_go_on_eagerly_where_what_was_compiled_cannot_be_used(
    settings: Settings, done: Path, started: Start, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(torch.OutOfMemoryError(message)))
    sr, gate = model(), Gate()
    if "CUDA" in message:
        monkeypatch.setattr(sr, "warm", lambda: raising(RuntimeError(message)))
    sr.defer()
    done.with_name("go").touch()
    aside = Aside(sr, settings, done, compiling.waits)
    lost = started(aside, gate)
    assert aside.ended(timeout_s=30)
    assert gate.open
    sr.predict([REQUEST])
    assert sr.departures == {"eager_compiling": 1}
    assert lost == ([message] if "CUDA" in message else [])


def raising(error: Exception) -> None:
    raise error


def test_a_process_that_leaves_takes_the_other_one_with_it(
    compiler: Compiler, settings: Settings, done: Path
) -> None:
    sr, gate = model(), Gate()
    sr.defer()
    aside = Aside(sr, settings, done, compiling.stays)
    aside.start(gate, print)
    wait_for(done.with_name("pid").exists, "the other process runs")
    pid = int(done.with_name("pid").read_text())
    aside.stop()
    assert aside.ended(timeout_s=10)
    assert not alive(pid)
    assert compiler.made == []
    unbegun = Aside(sr, settings, done, compiling.stays)
    unbegun.stop()
    assert unbegun.ended(timeout_s=0)


def test_a_process_that_is_killed_takes_the_other_one_with_it(
    settings: Settings, done: Path
) -> None:
    process = CONTEXT.Process(target=_leads, args=(settings.model_dump(), done))
    process.start()
    wait_for(done.with_name("pid").exists, "the other process runs")
    pid = int(done.with_name("pid").read_text())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not alive(pid), "the other process has ended")


def _leads(given: dict[str, object], done: Path) -> None:
    Aside(model("off"), Settings(**given), done, compiling.stays).start(Gate(), print)
    threading.Event().wait()


def alive(pid: int) -> bool:
    """Zombies are not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_other_process_compiles_what_the_model_calls_and_notes_it(
    settings: Settings, done: Path
) -> None:
    given = settings.model_copy(update={"tile_batch": 2, "preset": "tiny"})
    process = CONTEXT.Process(target=compiling.in_another_process, args=(given, done))
    process.start()
    process.join(90)
    assert process.exitcode == 0
    assert done.with_name("compiled").read_text() == "whole_1 whole_2"
    assert done.exists()


def test_at_the_first_start_compiling_is_left_to_another_process(
    compiler: Compiler, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resources, "free", lambda *_: FREE)
    sr = model()
    assert warmed(Loaded(sr, None), settings) is not None
    sr.predict([REQUEST])
    assert sr.departures == {"eager_compiling": 1}
    assert compiler.made == []
    assert warmed(Loaded(model("off"), None), settings) is None
    assert warmed(Loaded(model(offload=True), None), settings) is None


def test_what_was_compiled_once_is_read_before_the_first_job(
    compiler: Compiler, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resources, "free", lambda *_: FREE)
    sr = model()
    worker.aside._mark(sr, settings).touch()
    assert warmed(Loaded(sr, None), settings) is None
    assert compiler.made == ["whole_1", "whole_2"]
    # It was for calls of these sizes.
    other = model()
    other.planner.resources = replace(other.planner.resources, tile_batch=4)
    assert warmed(Loaded(other, None), settings) is not None


def test_where_memory_is_short_the_first_start_compiles_before_the_first_job_and_says_so(
    compiler: Compiler, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sr = model()
    short = Memory(0, 3 * sr.planner.estimate.weights.all, 0)
    monkeypatch.setattr(Resources, "free", lambda *_: short)
    with structlog.testing.capture_logs() as said:
        assert warmed(Loaded(sr, None), settings) is None
    assert compiler.made == ["whole_1", "whole_2"]
    assert said[0]["event"].startswith("compiling before the first job")
    assert said[0]["reason"].endswith("free")
    # The next start finds it.
    monkeypatch.setattr(Resources, "free", lambda *_: FREE)
    assert warmed(Loaded(model(), None), settings) is None


def test_workers_that_share_a_cache_compile_one_after_the_other(done: Path) -> None:
    other_is_in, order = threading.Event(), []

    def other() -> None:
        with worker.aside._alone(done):
            other_is_in.set()
            order.append("second")

    with worker.aside._alone(done):
        thread = threading.Thread(target=other)
        thread.start()
        assert not other_is_in.wait(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    # Without a cache there is nothing to wait for.
    with worker.aside._alone(done / "missing"):
        pass


def test_with_a_fixed_batch_all_jobs_are_computed_alike(
    compiler: Compiler, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resources, "free", lambda *_: FREE)
    fixed = settings.model_copy(update={"fixed_batch": 2})
    assert warmed(Loaded(model(), None), fixed) is None
    assert compiler.made == ["whole_1", "whole_2"]


def test_what_could_not_be_compiled_is_tried_again_at_the_next_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(RuntimeError("no working C++ compiler found")))
    sr = model()
    fixed = settings.model_copy(update={"fixed_batch": 2})
    assert warmed(Loaded(sr, None), fixed) is None
    assert sr.departures == {"eager_failure": 2}
    assert not worker.aside._mark(sr, fixed).exists()

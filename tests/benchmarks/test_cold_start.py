"""From a process' start to its first picture: the phases, and the table of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cold_start
from benchmarks.cold_start import (
    PHASES,
    Measured,
    Task,
    environment,
    main,
    measure,
    measured,
    table,
)
from models.pipeline import StableSR
from tests.models import narrow
from tests.models.compiler import Compiler


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Of networks that take no time, as if this process had been started just now."""

    def load(preset: str, *given: Any, **more: Any) -> StableSR:
        weights = narrow.CONFIG, narrow.PRESET, *given[1:]
        return StableSR.with_random_weights(*weights, **more)

    monkeypatch.setattr(cold_start, "load", load)
    monkeypatch.setattr(cold_start, "IMPORTED", time.time())
    started = time.time() - 3
    return Task("plain", "tiny", "preset", "cpu", "fp32", False, str(tmp_path), 2, 64, 1, started)


def test_every_phase_is_timed_from_the_start_of_the_process(task: Task) -> None:
    found = measure(task)
    assert found.name == "plain"
    assert tuple(found.seconds) == PHASES
    assert 2 < found.seconds["start"] < 4
    # Nothing is to be compiled.
    assert found.seconds["compile"] < 0.1
    assert found.to_first_image > found.seconds["start"] + found.seconds["first image"]


def test_calls_of_every_size_are_compiled_before_the_first_image(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    found = measure(replace(task, compile=True))
    # A call for each size, and those of two images.
    assert compiler.sizes == [1, 2, 1, 1]
    assert found.eager_calls == 0


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    task = Task("plain", "tiny", "preset", "nowhere", "fp32", False, str(tmp_path), 1, 64, 1)
    with pytest.raises(subprocess.CalledProcessError):
        measured(task)


def test_others_are_compared_with_the_start_that_found_nothing() -> None:
    plain = Measured("plain", dict.fromkeys(PHASES, 1.0), 0, "a machine")
    first = replace(plain, name="first", seconds=plain.seconds | {"compile": 97.0})
    again = replace(plain, name="again", seconds=plain.seconds | {"compile": 7.0}, eager_calls=2)
    lines = table([plain, first, again]).splitlines()
    assert lines[0] == "a machine"
    totals = [line.removesuffix("2 calls not compiled").split()[-1] for line in lines[2:5]]
    assert totals == ["4.00", "100.00", "10.00"]
    assert lines[4].endswith("2 calls not compiled")
    assert lines[5].endswith("10.00 times as fast.")
    assert len(table([plain]).splitlines()) == 3


def test_no_cache_of_the_environment_reaches_a_new_process() -> None:
    given = {
        "PATH": "/bin",
        "CUDA_CACHE_PATH": "/home/driver",
        "TORCHINDUCTOR_CACHE_DIR": "/home/torch",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1",
        "TRITON_CACHE_DIR": "/home/triton",
        "TRITON_CACHE_MANAGER": "another",
    }
    assert environment(given, "/empty") == {
        "PATH": "/bin",
        "CUDA_CACHE_PATH": "/empty/driver",
        "TORCHINDUCTOR_CACHE_DIR": "/empty",
        "TRITON_CACHE_DIR": "/empty/triton",
    }


def test_the_restart_alone_finds_what_another_process_has_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks: list[Task] = []

    def noted(task: Task) -> Measured:
        tasks.append(task)
        return Measured(task.name, dict.fromkeys(PHASES, 5.0 - len(tasks)), 0, "a machine")

    monkeypatch.setattr(cold_start, "measured", noted)
    monkeypatch.setattr(sys, "argv", ["cold_start", "--compile", "--tiles", "2", "--json"])
    main()
    plain, first, again = tasks
    assert [task.compile for task in tasks] == [False, True, True]
    assert [task.tiles for task in tasks] == [2, 2, 2]
    assert plain.cache != first.cache == again.cache
    # Gone with the folder that it was in.
    assert not Path(first.cache).parent.exists()
    figures = json.loads(capsys.readouterr().out)
    assert [figure["to_first_image"] for figure in figures] == [16.0, 12.0, 8.0]


@pytest.mark.parametrize("given", ["--tiles 0", "--size 66", "--weights random"])
def test_what_cannot_be_measured_is_refused_before_a_process_starts(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(task: Task) -> Measured:
        raise AssertionError(task)

    monkeypatch.setattr(cold_start, "measured", none)
    monkeypatch.setattr(sys, "argv", ["cold_start", *given.split()])
    with pytest.raises(SystemExit):
        main()

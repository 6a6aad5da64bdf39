"""The program: what it says when it cannot start, what it does without its weights, and the
embedded weights from end to end."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs.schema import JobState
from jobs.settings import Settings
from jobs.store import result_key
from models.checkpoints.places import Absence, preset_folder
from models.presets import get_preset
from tests.worker.processes import CONTEXT, House, png, wait_for
from worker.device import choose_device, choose_dtype
from worker.errors import NotStarted
from worker.run import main

PRESET = "stablesr-512"


def _main(settings: dict[str, Any], log: Path, weights: Path | None = None) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    if weights is not None:
        os.environ["STABLESR_WEIGHTS"] = str(weights)
    sys.exit(main(Settings(**settings)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": "cuda:7"}, "STABLESR_DEVICE is 'cuda:7'"),
        ({"blob_root": Path("/dev/null/blobs")}, "/dev/null/blobs"),
    ],
)
def test_a_worker_that_cannot_start_says_why_and_ends_with_1(
    house: House, changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = house.folder / "log"
    process = CONTEXT.Process(target=_main, args=(house.settings.model_dump() | changed, log))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "worker not started"
    assert said in last["reason"]
    assert "Traceback" not in log.read_text()
    assert house.queue.workers() == []


def test_a_worker_upscales_with_the_embedded_weights_and_ends_with_0(house: House) -> None:
    log = house.folder / "log"
    process = CONTEXT.Process(target=_main, args=(house.settings.model_dump(), log))
    process.start()
    try:
        job = house.ended(house.submit(png(24, 16), steps=2, scale=4.0), seconds=90)
        assert job.state is JobState.SUCCEEDED, log.read_text()
        with Image.open(io.BytesIO(house.store.get(result_key(job.id)))) as image:
            assert image.size == (96, 64)
        [info] = house.queue.workers()
        assert (info.preset, info.device, info.slots) == ("tiny", "cpu", 2)
        process.terminate()
        process.join(30)
        assert process.exitcode == 0
        wait_for(lambda: house.queue.workers() == [], "the worker is off the register")
    finally:
        process.kill()
        process.join()


def test_a_worker_without_its_weights_is_not_ready_until_they_come(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, log = tmp_path / "weights", house.folder / "log"
    monkeypatch.setenv("STABLESR_WEIGHTS", str(weights))
    preset = get_preset(PRESET)
    settings = house.settings.model_dump() | {"preset": PRESET}
    process = CONTEXT.Process(target=_main, args=(settings, log, weights))
    process.start()

    def not_ready(reason: str) -> None:
        wait_for(
            lambda: [(w.state, w.reason) for w in house.queue.workers()] == [("not_ready", reason)],
            f"the worker says that {reason}",
            seconds=60,
        )

    def put() -> None:
        shutil.copytree(preset_folder(get_preset("tiny")), weights / "aside")
        (weights / "aside" / "config.json").touch()
        (weights / "aside").rename(weights / PRESET)

    try:
        not_ready("its weights are not on the worker's machine")
        [line] = [line for line in _lines(log) if line["event"] == "worker not ready"]
        assert (line["level"], line["preset"]) == ("error", PRESET)
        assert line["reason"] == "its weights are not on the worker's machine"
        assert str(weights) in line["detail"]
        # What keeps them away is said as it is now, and not for weights that are there but unfit.
        for reason in ("its licence is not accepted", "the hub does not answer"):
            Absence.note(preset, reason)
            not_ready(reason)
        (weights / PRESET).mkdir(parents=True)
        (weights / PRESET / "config.json").write_text("{}")
        not_ready("its weights on the worker's machine cannot be used")

        (weights / PRESET).rename(weights / "unfit")
        put()
        house.ready()
        [info] = house.queue.workers()
        assert (info.preset, info.reason) == (PRESET, None)
        job = house.ended(house.submit(png(12, 8), steps=1, preset=PRESET), seconds=120)
        assert job.state is JobState.SUCCEEDED, log.read_text()
        process.terminate()
        process.join(30)
        assert process.exitcode == 0, log.read_text()
    finally:
        process.kill()
        process.join()


def test_a_worker_that_waits_for_its_weights_ends_when_it_is_asked_to(
    house: House, tmp_path: Path
) -> None:
    log = house.folder / "log"
    settings = house.settings.model_dump() | {"preset": PRESET, "worker_ttl_s": 600}
    process = CONTEXT.Process(target=_main, args=(settings, log, tmp_path / "weights"))
    process.start()
    try:
        wait_for(
            lambda: [worker.state for worker in house.queue.workers()] == ["not_ready"],
            "the worker is not ready",
            seconds=60,
        )
        process.terminate()
        process.join(30)
        assert process.exitcode == 0, log.read_text()
        assert house.queue.workers() == []
    finally:
        process.kill()
        process.join()


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_cpu_computes_in_float32_and_a_gpu_in_bfloat16_unless_told_otherwise() -> None:
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    assert choose_dtype("float16", torch.device("cpu")) is torch.float32
    assert choose_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert choose_dtype("float16", torch.device("cuda")) is torch.float16


def test_a_device_that_does_not_exist_is_refused_in_one_sentence() -> None:
    with pytest.raises(NotStarted, match=r"^STABLESR_DEVICE is 'abacus', which cannot be used"):
        choose_device("abacus")
    assert choose_device("cpu") == torch.device("cpu")

"""Averages, rates, accumulation; batches made one ahead on a thread that ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints.folder import load_folder
from tests.models.narrow import WITH_COMPACT
from tests.training.small_run import (
    CFW,
    CPU,
    DISTILL,
    TEACHER,
    VAE,
    loop,
    losses,
    settings_of,
)
from training.objectives import Cfw
from training.pairs import Batch
from training.run import train
from training.trainer import Prefetcher

CUDA = torch.device("cuda")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that threads made their current one."""
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def numbered() -> Prefetcher:
    def draw(number: int) -> Batch:
        if number == 4:
            raise ValueError("no batch 4")
        return {"number": torch.tensor(number)}

    return Prefetcher(draw, CUDA)


def test_on_a_gpu_the_next_batch_is_made_meanwhile_on_the_same_device(a_gpu: list[int]) -> None:
    threads: list[str] = []
    events = [threading.Event() for _ in range(5)]

    def draw(number: int) -> Batch:
        threads.append(threading.current_thread().name)
        events[number].set()
        return {"number": torch.tensor(number)}

    batches = Prefetcher(draw, CUDA)
    for number in range(3):
        assert int(batches(number)["number"]) == number
        assert events[number + 1].wait(20)
    batches.close()
    assert threads == ["batches_0"] * 4
    assert a_gpu == [3]
    assert "batches_0" not in {thread.name for thread in threading.enumerate()}


def test_a_batch_out_of_turn_is_made_all_the_same(a_gpu: list[int]) -> None:
    batches = numbered()
    assert [int(batches(number)["number"]) for number in (0, 7, 2)] == [0, 7, 2]
    batches.close()


def test_what_drawing_raises_is_raised_where_the_batch_is_asked_for(a_gpu: list[int]) -> None:
    batches = numbered()
    batches(3)
    with pytest.raises(ValueError, match="no batch 4"):
        batches(4)
    batches.close()


def test_on_a_cpu_nothing_is_made_before_it_is_asked_for() -> None:
    numbers: list[int] = []

    def draw(number: int) -> Batch:
        numbers.append(number)
        return {}

    batches = Prefetcher(draw, torch.device("cpu"))
    batches(0)
    batches.close()
    assert numbers == [0]


@pytest.mark.usefixtures("teacher")
def test_blended_weights_lie_between_the_start_and_the_average(tmp_path: Path) -> None:
    folders = {}
    for share in (0.25, 1):
        table = {**DISTILL, "blend": share}
        settings = settings_of(tmp_path, WITH_COMPACT, teacher=TEACHER, distill=table)
        out = tmp_path / f"out{share}"
        if share < 1:  # stopped and resumed: the start is not that of the second part
            train("distill", settings, out, resume=False, max_steps=1)
        train("distill", settings, out, resume=share < 1, max_steps=2)
        folders[share] = out / "distill" / "weights"
    start, end, blend = (
        load_folder(folder, CPU, torch.float32).state_dict()
        for folder in (tmp_path / "base", folders[1], folders[0.25])
    )
    for name, tensor in blend.items():
        torch.testing.assert_close(tensor, start[name].lerp(end[name], 0.25))


def test_factors_slow_the_parameters_that_they_name(tmp_path: Path) -> None:
    """AdamW's first step is as long as the rate, unless the gradient is next to nothing."""
    factors = {"autoencoder.decoder.layers.": 0.25, "autoencoder.decoder.": 0.5}
    table: dict[str, Any] = {
        **VAE,
        "teacher_share": 0,
        "loop": loop(1, average=0, weight_decay=0, factors=factors),
    }
    settings = settings_of(tmp_path, WITH_COMPACT, vae=table)
    train("vae", settings, tmp_path / "out", resume=False)
    before, after = (
        load_folder(folder, CPU, torch.float32).state_dict()
        for folder in (tmp_path / "base", tmp_path / "out" / "vae" / "weights")
    )
    # The first that fits counts.
    parts = (*factors, "autoencoder.encoder.")
    longest = dict.fromkeys(parts, 0.0)
    for name in before:
        part = next((part for part in parts if name.startswith(part)), None)
        if part is not None:
            step = float((after[name] - before[name]).abs().max())
            longest[part] = max(longest[part], step / table["loop"]["learning_rate"])
    assert list(longest.values()) == pytest.approx([0.25, 0.5, 1.0], rel=0.01)


def test_backward_passes_of_one_step_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batch three times is worth that batch once."""
    draw = Cfw.draw
    monkeypatch.setattr(Cfw, "draw", lambda self, number: draw(self, 0))
    once = settings_of(tmp_path, cfw={**CFW, "loss": {}, "loop": loop(2)})
    thrice = settings_of(tmp_path, cfw={**CFW, "loss": {}, "loop": loop(2, accumulate=3)})
    train("cfw", once, tmp_path / "once", resume=False)
    train("cfw", thrice, tmp_path / "thrice", resume=False)
    expected = losses(tmp_path / "once" / "cfw")
    assert losses(tmp_path / "thrice" / "cfw") == pytest.approx(expected, rel=1e-4)

"""Batches made one ahead: the same batches, in the same order, on a thread that ends."""

from __future__ import annotations

import threading

import pytest
import torch

from training.objective import Batch
from training.trainer import Ahead

CUDA = torch.device("cuda")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The device that each thread made its current one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def numbered() -> Ahead:
    def draw(number: int) -> Batch:
        if number == 4:
            raise ValueError("no batch 4")
        return {"number": torch.tensor(number)}

    return Ahead(draw, CUDA)


def test_on_a_gpu_the_next_batch_is_made_meanwhile_on_the_same_device(a_gpu: list[int]) -> None:
    threads: list[str] = []
    made = [threading.Event() for _ in range(5)]

    def draw(number: int) -> Batch:
        threads.append(threading.current_thread().name)
        made[number].set()
        return {"number": torch.tensor(number)}

    batches = Ahead(draw, CUDA)
    for number in range(3):
        assert int(batches(number)["number"]) == number
        assert made[number + 1].wait(20)
    batches.close()
    assert threads == ["batches_0"] * 4
    assert set(a_gpu) == {3}
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
    drawn: list[int] = []

    def draw(number: int) -> Batch:
        drawn.append(number)
        return {}

    batches = Ahead(draw, torch.device("cpu"))
    batches(0)
    batches.close()
    assert drawn == [0]

"""What benchmarks.throughput calls equal, and what it prints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.pictures import Difference
from benchmarks.rounds import Done, Round
from benchmarks.throughput import Measured, table
from benchmarks.workload import Asked, InEngine, Workload
from jobs.schema import Parameters
from models.checkpoints.folder import preset_folder
from models.pipeline import StableSR
from models.presets import get_preset
from worker.engine import Engine

WORKLOAD = Workload("tiny", "preset", "cpu", "auto", "off", 2, None, None)
ALONE = Round(8.0, (Done(4.0, {}), Done(4.0, {})), calls=4, tiles=4, fill=0.125)
TOGETHER = Round(4.0, (Done(3.5, {}), Done(4.0, {})), calls=2, tiles=4, fill=0.25)


def measured(difference: Difference, *, dtype: str, fixed: int | None = None) -> Measured:
    return Measured(
        machine="a machine",
        way="engine",
        workload=replace(WORKLOAD, fixed_batch=fixed),
        dtype=dtype,
        jobs=2,
        size=512,
        steps=2,
        ready_seconds=1.0,
        warm_up_seconds=(1.0, 1.0),
        alone=ALONE,
        together=TOGETHER,
        difference=difference,
        others=None,
    )


@pytest.mark.parametrize(
    ("largest", "mean", "dtype", "fixed", "equal"),
    [
        (1, 0.4, "float32", None, True),
        (2, 0.0, "float32", None, False),
        (9, 0.4, "bfloat16", None, True),
        (9, 1.1, "bfloat16", None, False),
        (2, 0.0, "bfloat16", 4, False),
        (1, 0.0, "bfloat16", 4, True),
    ],
)
def test_what_counts_as_equal_depends_on_the_roundings(
    largest: int, mean: float, dtype: str, fixed: int | None, equal: bool
) -> None:
    difference = Difference(largest, mean, 0.1)
    assert measured(difference, dtype=dtype, fixed=fixed).equal is equal


def test_the_table_has_the_ratio_and_the_room_of_a_call() -> None:
    text = table(measured(Difference(0, 0.0, 0.0), dtype="float32"))
    assert "8 tiles a call" in text
    [together] = [line for line in text.splitlines() if line.startswith("together   ")][:1]
    assert together.split() == [
        "together",
        "4.00",
        "0.500",
        "2.00",
        "3.50",
        "4.00",
        "2",
        "2.00",
        "0.25",
    ]


class Small(Asked):
    def parameters(self, preset: str) -> Parameters:
        return super().parameters(preset).model_copy(update={"tile_overlap": 8})


def test_jobs_in_the_engine_give_what_they_give_one_at_a_time() -> None:
    # Tiles of 16 latent cells instead of 64, which is 16 times faster.
    tiny = get_preset("tiny")
    small = replace(tiny, native=128, tile=16, overlap=8)
    sr = StableSR.from_folder(preset_folder(tiny), small)
    engine = Engine(sr, max_tiles=4)
    engine.start()
    runner = InEngine(sr, engine, slots=2)
    jobs = [Small(number, 64, 1) for number in range(2)]
    try:
        alone, singly = runner.run(jobs, together=False)
        together, jointly = runner.run(jobs, together=True)
    finally:
        engine.stop()
    assert (alone.calls, alone.tiles, together.tiles) == (2, 2, 2)
    assert alone.fill == 0.25
    assert [pixels.shape for pixels in jointly] == [(64, 64, 3)] * 2
    assert Difference.of(zip(singly, jointly, strict=True)).largest <= 1
    assert all(0 < job.seconds <= together.seconds for job in together.jobs)

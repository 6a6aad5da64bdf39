"""The report of a GPU, rehearsed on the processor with narrow networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Part, Sizes, report, small_sizes
from benchmarks.model import Model, Variant
from benchmarks.results import Measurement, Result
from models.pipeline import StableSR
from tests.models import narrow

SIZES = replace(
    small_sizes(Model("tiny", "preset", "cpu", 1)), tests="tests/benchmarks/test_results.py"
)


def test_every_part_has_its_figures_in_one_file_and_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: Model, variant: Variant) -> StableSR:
        weights = narrow.CONFIG, narrow.PRESET, "cpu", torch.float32
        return StableSR.load(*weights)

    def run_here(part: Part, sizes: Sizes, limit_s: float) -> tuple[list[Measurement], str]:
        return list(part(sizes)), ""

    monkeypatch.setattr(gpu, "load", load)
    monkeypatch.setattr(gpu, "run_part", run_here)
    result = report(SIZES, tmp_path)
    assert result.failures == {}
    assert Result.read(tmp_path / "gpu-report.json") == result
    table = (tmp_path / "gpu-report.md").read_text()
    values = {(m.variant, m.case, m.quantity): m.value for m in result.measurements}
    for variant, case, quantity in (
        ("eager fp32", "step, batch 1", "a tile and step"),
        ("compiled fp32", "step, batch 2", "a tile and step"),
        ("eager fp32", "image, 64 px, 2 steps", "all"),
        ("eager fp32", "image, 64 px, 1 steps", "all"),
        ("one by one", "together, 2 jobs of 1 steps, 64 px", "speed"),
        ("together", "together, 2 jobs of 1 steps, 64 px", "speed"),
        ("", "memory, 64 px", "peak memory"),
        ("", "tests, tests/benchmarks/test_results.py", "passed"),
    ):
        assert values[variant, case, quantity] > 0
        assert case in table


def test_a_part_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(part: Part, sizes: Sizes, limit_s: float) -> tuple[list[Measurement], str]:
        figure = Measurement("", "first", "all", 1, "s")
        return [figure], "out of memory" if part is gpu.image else ""

    monkeypatch.setattr(gpu, "run_part", run)
    result = report(SIZES, tmp_path)
    assert result.failures == {"image": "out of memory"}
    assert [m.case for m in result.measurements] == [
        f"{name.partition(',')[0]}, first" for name in gpu.PARTS
    ]
    table = (tmp_path / "gpu-report.md").read_text()
    assert "|  | image | ended early: out of memory |" in table


def test_parts_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    assert report(SIZES, tmp_path, limit_s=0).failures == dict.fromkeys(gpu.PARTS, "no time")

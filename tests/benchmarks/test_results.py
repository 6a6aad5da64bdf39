"""Ratios, and the table of them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from benchmarks.report import tables
from benchmarks.results import Measurement, Result, Unit, percentile


def result(*measurements: Measurement, machine: str = "a machine") -> Result:
    return Result(
        machine=machine,
        date=date(2026, 11, 28),
        versions={"torch": "2"},
        command="python -m benchmarks.step",
        subject="a step",
        measurements=list(measurements),
    )


def one(variant: str, value: float, unit: Unit = "s", case: str = "", **more: bool) -> Measurement:
    return Measurement(variant, case, "all", value, unit, **more)


def test_ratios_are_to_the_first_variant_of_the_same_case() -> None:
    slow, fast, other = one("eager", 10), one("fused", 4), one("fused", 3, case="batch 4")
    speeds = one("eager", 2, "images/s", "many"), one("fused", 3, "images/s", "many")
    both = result(slow, fast, other, *speeds)
    assert both.ratio(slow) is None
    assert both.ratio(fast) == 2.5
    assert both.ratio(other) is None
    assert both.ratio(speeds[1]) == 1.5
    assert result(one("a", 30, "score"), one("b", 20, "score")).ratio(one("b", 20, "score")) is None


def test_a_bound_is_written_as_one() -> None:
    text = tables([result(one("eager", 2), one("slow", 100, at_least=True))])
    assert text.splitlines()[-1] == "|  | slow | all more than 100 s (< 0.02) |"


def test_each_machine_has_one_table() -> None:
    text = tables(
        [result(one("", 0.0382)), result(one("", 3), machine="b"), result(one("", 2e9, "bytes"))]
    )
    assert [line for line in text.splitlines() if line.startswith("#")] == ["## a machine", "## b"]
    first = text.split("## b")[0].splitlines()
    assert [line.split(" | ")[-1] for line in first if "2026" in line] == [
        "all 0.0382 s |",
        "all 2.00 GB |",
    ]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = result(one("eager", 2, at_least=True))
    path = tmp_path / "result.json"
    path.write_text(before.model_dump_json())
    assert Result.read(path) == before
    path.write_text('[{"way": "eager"}]')
    with pytest.raises(ValueError, match=r"result\.json is no result of a benchmark"):
        Result.read(path)


def test_a_percentile_is_a_value_that_the_share_does_not_exceed() -> None:
    values = [float(n) for n in range(20, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 1.0)] == [10, 19, 20]
    assert percentile([3.0], 0.95) == 3
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)

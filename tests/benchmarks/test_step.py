"""A variant that takes too long, and what another build prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import image, step
from benchmarks.checkouts import measure_checkout
from benchmarks.model import Model, Variant
from benchmarks.results import Measurement

TINY = Model("tiny", "preset", "cpu", 1)


def test_a_call_that_takes_too_long_ends_its_variant() -> None:
    [bound] = step.measure(step.Task(TINY, Variant("slow"), 2, 1, limit=1e-4))
    assert bound == Measurement("slow", "batch 2", "a tile and step", 5e-5, "s", at_least=True)


@pytest.mark.parametrize(
    "printed",
    [
        """{"machine": "m", "date": "2026-11-28", "versions": {}, "command": "c", "subject": "s",
        "measurements": [{"variant": "fp32", "case": "batch 1", "quantity": "a tile and step",
        "value": 2.0, "unit": "s"}]}""",
        """[{"way": "fp32", "batch": 1, "seconds_per_tile_step": 2.0, "processor_seconds": 1,
        "first_seconds": 3, "peak_memory_bytes": 4, "machine": "m"},
        {"way": "slow", "batch": 4, "limit": 8.0}]""",
    ],
)
def test_another_build_is_measured_by_its_own_command(printed: str, tmp_path: Path) -> None:
    folder = tmp_path / "other" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    script = (
        f"import sys\nassert sys.argv[1:] == ['--batch', '1', '--json']\nprint('''{printed}''')"
    )
    (folder / "step.py").write_text(script)
    arguments = ["--batch", "1"]
    first, *others = measure_checkout(tmp_path / "other", "step", arguments, step.older)
    assert first == Measurement("other fp32", "batch 1", "a tile and step", 2.0, "s")
    if others:
        assert [m.value for m in others] == [1, 3, 4, 2.0]
        assert others[-1].at_least


def test_an_image_of_an_older_build_has_the_same_cases() -> None:
    row = {
        "way": "fp32",
        "size": 512,
        "fidelity_weight": 0.5,
        "seconds": dict.fromkeys(image.STAGES, 1.0),
        "peak_memory_bytes": 7,
    }
    assert image.older(row) == image.figures_of("fp32", "512 px, w = 0.5", row["seconds"], 7)  # type: ignore[arg-type]  # of values of many kinds

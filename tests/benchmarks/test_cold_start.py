"""From a process' start to its first picture: the phases, and the table of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.cold_start import PHASES, Measured, Task, measured, table


def test_every_phase_of_a_new_process_is_timed_from_its_start(tmp_path: Path) -> None:
    task = Task("plain", "tiny", "preset", "cpu", "fp32", False, str(tmp_path), 1, 64, 1)
    found = measured(task)
    assert found.name == "plain"
    assert tuple(found.seconds) == PHASES
    # Importing torch takes a second or so; nothing is to be compiled.
    assert found.seconds["start"] > 0.2
    assert found.seconds["compile"] < 0.1
    assert found.to_first_image > found.seconds["start"] + found.seconds["first image"]


def test_a_restart_is_compared_with_the_start_that_found_nothing() -> None:
    plain = Measured("plain", dict.fromkeys(PHASES, 1.0), 0, "a machine")
    first = replace(plain, name="first", seconds=plain.seconds | {"compile": 97.0})
    again = replace(plain, name="again", seconds=plain.seconds | {"compile": 7.0}, eager_calls=2)
    lines = table([plain, first, again]).splitlines()
    assert lines[0] == "a machine"
    assert [line.split()[6] for line in lines[2:5]] == ["4.00", "100.00", "10.00"]
    assert lines[4].endswith("2 calls not compiled")
    assert lines[5].endswith("10.00 times as fast.")
    assert len(table([plain]).splitlines()) == 3

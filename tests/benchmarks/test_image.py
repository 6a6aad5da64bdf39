"""Seconds of an image by its stages, and the table of them."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

import benchmarks.image
from benchmarks.image import STAGES, Measured, Task, decoding, main, measure, table
from benchmarks.step import Way
from models.pipeline import StableSR
from tests.models import narrow

TASK = Task(Way("fp32", "fp32"), "tiny", "preset", "cpu", 64, (0.0, 0.5), 2, 1, 1)


def test_every_stage_of_an_image_is_timed_with_each_fidelity_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sr = StableSR.with_random_weights(narrow.CONFIG, narrow.PRESET)
    monkeypatch.setattr(benchmarks.image, "loaded", lambda *_: sr)
    found = measure(TASK)
    assert [m.fidelity_weight for m in found] == [0.0, 0.5]
    for one in found:
        assert tuple(one.seconds) == STAGES
        assert all(seconds > 0 for seconds in one.seconds.values())
        # A single tile, twice.
        assert (one.calls, one.tiles) == (2, 2)
        assert one.first_seconds == found[0].first_seconds


def test_ratios_are_to_the_first_way_of_the_same_size_and_weight() -> None:
    seconds = {"encode": 1.0, "denoise": 5.0, "decode": 3.0, "file": 1.0}
    slow = Measured("plain", 64, 0.5, seconds, 2, 2, 11.0, 10**9, "a machine")
    fast = replace(slow, way="quick", seconds=dict.fromkeys(STAGES, 1.0))
    other = replace(fast, size=128)
    lines = table([slow, fast, other], "tiny").splitlines()
    assert lines[0].endswith("a machine")
    [plain, shares, quick, _, alone, _] = [line.split() for line in lines[2:]]
    assert plain[:3] == ["plain", "64", "0.5"]
    assert plain[7:11] == ["10.000", "1.00", "2", "2.5000"]
    assert shares == ["10%", "50%", "30%", "10%"]
    assert quick[8] == "2.50"
    assert alone[8] == "1.00"


def test_decoding_is_compared_with_that_of_the_same_way_and_size_at_w_0() -> None:
    short = Measured("quick", 64, 0.0, dict.fromkeys(STAGES, 2.0), 2, 2, 11.0, 10**9, "a machine")
    long = replace(short, fidelity_weight=0.5, seconds=dict.fromkeys(STAGES, 5.0))
    elsewhere = replace(long, size=128)
    assert decoding([short, long, elsewhere]) == [None, 2.5, None]
    [_, _, _, first, _, second, _, third] = table([short, long, elsewhere], "tiny").splitlines()
    assert second.endswith("decode 2.50 x w = 0")
    assert first.endswith("%")
    assert third.endswith("%")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--sizes 64 66", "66 is not"),
        ("--repeats 0", "there must be a repeat"),
        ("--weights random", "tiny comes with its weights"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["image", *given.split()])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err

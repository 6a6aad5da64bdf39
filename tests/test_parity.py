"""The golden figures of the released networks that take seconds; `make parity` compares all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.parity import QUICK, Golden, compare, comparisons

FOLDER = Path(__file__).parent / "golden"


def test_every_network_and_every_schedule_reproduce_their_golden_arrays() -> None:
    results = list(comparisons(Golden(FOLDER), QUICK))
    assert [r for r in results if not r.ok] == []
    assert len(results) == 34


def test_an_answer_that_is_off_by_a_ten_thousandth_is_refused() -> None:
    golden = Golden(FOLDER)
    array = np.asarray(golden.arrays["color_adain"], np.float32)
    assert compare("x", torch.from_numpy(array), array).ok
    assert not compare("x", torch.from_numpy(array * 1.0001), array).ok


def test_an_eight_bit_image_may_differ_by_one_level_in_few_places_only() -> None:
    golden = np.asarray(Golden(FOLDER).arrays["image_sr_adain"], np.uint8)
    image = golden.copy()
    image.flat[0] ^= 1
    assert compare("x", image, golden).ok
    image.flat[0] ^= 6
    assert not compare("x", image, golden).ok
    assert not compare("x", golden ^ 1, golden).ok

"""PSNR and SSIM on luma, NIQE, and the scores that networks give."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluation.images import EvaluationError, Pixels, degrade_pixels, pixels_of, read, tensor_of
from evaluation.learned import LEARNED_SCORES, LearnedScores, add_vgg, load
from evaluation.methods import OursAtWeights
from evaluation.metrics import lattice, luma, offline_scores, phase, psnr, ssim
from evaluation.niqe import niqe
from models.pipeline import StableSR
from tests.evaluation.conftest import crop
from tests.models import narrow
from tests.training.vgg_files import vgg_file


def noisy(image: Pixels, strength: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, strength, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def blur(image: Pixels) -> Pixels:
    soft: Pixels = gaussian_filter(image.astype(np.float64), (2, 2, 0)).astype(np.uint8)
    return soft


def test_luma_runs_from_16_to_235() -> None:
    colors = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    np.testing.assert_allclose(luma(colors), [[16, 235, 16 + 65.481]])


def test_psnr_is_that_of_a_known_error() -> None:
    original = np.full((64, 64, 3), 100, np.uint8)
    # One level in all channels is 219 / 255 of a level of luma.
    expected = 20 * math.log10(255 / (219 / 255))
    assert psnr(original + np.uint8(1), original) == pytest.approx(expected)
    assert psnr(original, original) == math.inf


def test_the_border_does_not_count_and_the_pixel_within_it_does() -> None:
    original = crop("petra", 64, 64)
    other = original.copy()
    other[:4] = 0
    other[:, -4:] = 0
    assert psnr(other, original, 4) == math.inf
    assert ssim(other, original, 4) == 1
    assert psnr(other, original, 3) < 40


def test_ssim_falls_with_noise_and_with_blur() -> None:
    original = crop("petra", 128, 128)
    assert 1 > ssim(noisy(original, 5), original) > ssim(noisy(original, 20), original) > 0
    assert ssim(blur(original), original) < 0.9


def test_results_of_another_size_and_tiny_ones_are_refused() -> None:
    with pytest.raises(EvaluationError, match="64 x 32 pixels, but the original has 64 x 64"):
        psnr(crop("petra", 32, 64), crop("petra", 64, 64))
    with pytest.raises(EvaluationError, match="too small for a border of 4"):
        psnr(crop("petra", 18, 64), crop("petra", 18, 64))


def test_niqe_prefers_a_photograph_to_its_blurred_and_its_noisy_self() -> None:
    original = crop("kitten", 288, 288)
    clean = niqe(original)
    assert 2 < clean < 6
    assert niqe(blur(original)) > clean + 1
    assert niqe(noisy(original, 30)) > clean + 1


def test_niqe_needs_two_patches() -> None:
    assert niqe(crop("petra", 96, 192)) > 0
    with pytest.raises(EvaluationError, match="two patches of 96 x 96"):
        niqe(crop("petra", 191, 96))
    with pytest.raises(EvaluationError, match="with texture"):
        niqe(np.full((192, 192, 3), 7, np.uint8))


def test_without_pyiqa_every_learned_score_says_why_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    scores = load()
    assert set(scores.unavailable) == set(LEARNED_SCORES)
    assert "pip install pyiqa" in scores.unavailable["lpips"]
    assert scores.scores(crop("petra", 32, 32), crop("petra", 32, 32)) == {}


def test_a_score_whose_weights_cannot_be_fetched_is_named_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def create_metric(name: str, device: object) -> Any:
        def late(*images: Any) -> float:
            raise ConnectionError("no such host\nmore")

        if name == "lpips":
            raise OSError("no route to the hub")
        return {"clipiqa": late, "musiq": lambda image: 50.0, "fid": lambda a, b: 7.0}[name]

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    scores = load()
    assert scores.unavailable == {"lpips": "OSError: no route to the hub"}
    image = crop("petra", 32, 32)
    assert scores.scores(image, image) == {"musiq": 50.0}
    assert scores.unavailable["clipiqa"] == "ConnectionError: no such host"
    assert scores.folder_scores(tmp_path, tmp_path) == {"fid": 7.0}


def test_a_vgg_16_from_a_file_scores_how_far_a_picture_is_from_its_original(tmp_path: Path) -> None:
    scores = LearnedScores()
    add_vgg(scores, vgg_file(tmp_path / "vgg16.pth"))
    original = crop("petra", 32, 32)
    assert scores.scores(original, original) == {"vgg": 0}
    near, far = (scores.scores(noisy(original, n), original)["vgg"] for n in (2, 20))
    assert 0 < near < far


def test_the_scores_that_run_offline_are_five() -> None:
    original = crop("petra", 192, 192)
    scores = offline_scores(noisy(original, 5), original, 4)
    assert set(scores) == {"psnr", "ssim", "niqe", "lattice", "phase"}


PHOTOGRAPH = Path(__file__).parents[1] / "photographs" / "red_panda.webp"


@pytest.fixture(scope="module")
def photograph() -> Pixels:
    return read(PHOTOGRAPH)


def with_pattern(image: Pixels, cell: np.ndarray) -> Pixels:
    side = len(cell)
    tiles = (image.shape[0] // side, image.shape[1] // side)
    pattern = np.tile(cell, tiles)[..., None]
    result: Pixels = (image + pattern).round().clip(0, 255).astype(np.uint8)
    return result


def test_a_photograph_has_no_lattice(photograph: Pixels) -> None:
    assert lattice(photograph) < 1.5
    assert phase(photograph) < 0.06


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_pattern_of_two_grey_levels_that_repeats_is_seen(photograph: Pixels, period: int) -> None:
    cell = np.zeros((period, period))
    cell[:, 0] = 4.0
    assert lattice(with_pattern(photograph, cell)) > lattice(photograph) + 3


def test_rows_count_as_columns_do(photograph: Pixels) -> None:
    cell = np.zeros((4, 4))
    cell[:, 0] = 6.0
    image = with_pattern(photograph, cell)
    rotation = np.ascontiguousarray(np.rot90(image))
    assert lattice(rotation) == pytest.approx(lattice(image), abs=0.5)


def test_a_period_that_no_decoder_has_is_no_lattice(photograph: Pixels) -> None:
    cell = np.zeros((512, 512))
    cell[:, ::7] = 4.0
    assert lattice(with_pattern(photograph, cell)) < 3


def test_phases_tell_what_a_decoder_adds_at_one_place_of_every_cell(photograph: Pixels) -> None:
    cell = np.zeros((4, 4))
    cell[1, 2] = 2.0
    assert phase(with_pattern(photograph, cell)) > phase(photograph) + 0.1


def test_a_flat_picture_has_neither() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    assert lattice(flat) == 0
    assert phase(flat) == 0


def test_the_embedded_weights_leave_no_lattice() -> None:
    """Version 3 left lines of 5 dB at w = 0."""
    ours = OursAtWeights(StableSR.from_preset("tiny"), [0.0, 1.0], narrow.parameters())
    scores = []
    for path in sorted(PHOTOGRAPH.parent.glob("*.webp"))[:6]:
        low = tensor_of(degrade_pixels(read(path), path.stem, 4, "paper", 0))
        images = [pixels_of(result.image) for result in ours.enlarge(low, 4)]
        scores.append([(lattice(image), phase(image)) for image in images])
    for lines, phases in np.mean(scores, axis=0):
        assert lines < 2.0
        assert phases < 0.08

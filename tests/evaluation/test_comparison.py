"""A whole comparison: results, scores, sheets, and a blind study with its tally."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from evaluation.comparison import Comparison, compare, result_path, write_json
from evaluation.images import BadImages, EvaluationError, Pair, write, write_degraded
from evaluation.learned import LearnedScores
from evaluation.methods import BaselineUnavailable, OursAtWeights, make_baseline
from evaluation.sheets import finest, write_sheets
from evaluation.study import BadStudy, tally, write_study
from models.pipeline import StableSR
from tests.evaluation.conftest import crop, write_originals
from tests.models import narrow
from training.realesrgan import RRDBNet

Scores = tuple[Comparison, list[Pair], Path]


@pytest.fixture(scope="module")
def scores(sr: StableSR, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    out = tmp_path_factory.mktemp("out")
    pairs = write_degraded(write_originals(out / "hr"), out / "lr", 4, "mild", 0)
    ours = OursAtWeights(sr, (0.0, 1.0), narrow.parameters())
    networks = LearnedScores({"fid": lambda _, originals: len(list(Path(originals).iterdir()))})
    return compare(pairs, [make_baseline("bicubic"), ours], out, networks), pairs, out


def test_every_result_is_written_scored_and_timed(scores: Scores) -> None:
    comparison, _, out = scores
    assert comparison.methods == ["bicubic", "narrow w=0", "narrow w=1"]
    assert {row.image for row in comparison.rows} == {"kitten", "petra"}
    for row in comparison.rows:
        with Image.open(result_path(out, row.method, row.image)) as result:
            assert result.size == (256, 256)
        assert set(row.scores) == {"psnr", "ssim", "niqe", "lattice", "phase"}
    assert comparison.metrics == ["psnr", "ssim", "fid", "niqe", "lattice", "phase"]
    bicubic = [r.scores["psnr"] for r in comparison.rows if r.method == "bicubic"]
    assert comparison.means("bicubic")["psnr"] == pytest.approx(sum(bicubic) / 2)
    # Networks of random numbers are no match for it.
    assert comparison.means("bicubic")["ssim"] > comparison.means("narrow w=0")["ssim"]
    # A set's score sees the originals of these images alone.
    assert comparison.means("bicubic")["fid"] == 2
    write_json(out / "scores.json", comparison.as_dict())
    content = json.loads((out / "scores.json").read_text())
    assert set(content["methods"]) == set(comparison.methods)
    assert content["paper"]["RealSR"]["psnr"] == 24.70
    assert set(content["pictures"][0]) == {"picture", "method", "seconds", "scores"}


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"psnr": float("inf"), "more": [1.5, float("nan")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"psnr": None, "more": [1.5, None]}


def test_two_methods_of_one_name_and_too_small_images_are_refused_before_any_work(
    originals: Path, tmp_path: Path
) -> None:
    pairs = write_degraded(originals, tmp_path / "lr", 4, "bicubic", 0)
    with pytest.raises(BadImages, match="Two methods are called bicubic"):
        compare(pairs, [make_baseline("bicubic")] * 2, tmp_path / "out")
    write(originals / "small.png", crop("petra", 64, 64))
    pairs = write_degraded(originals, tmp_path / "lr", 4, "bicubic", 0)
    with pytest.raises(EvaluationError, match="64 x 64 pixels"):
        compare(pairs, [make_baseline("bicubic")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_of_another_scale_ends_the_comparison_with_its_name(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_degraded(originals, tmp_path / "lr", 2, "bicubic", 0)
    monkeypatch.setattr(RRDBNet, "from_model", lambda place, model: nn.Identity())
    with pytest.raises(BaselineUnavailable, match="realesrgan-x4plus upscales by 4 only"):
        compare(pairs, [make_baseline("realesrgan-x4plus=nowhere")], tmp_path / "out")


def test_sheets_hold_every_method_and_the_page_shows_them(scores: Scores) -> None:
    comparison, pairs, out = scores
    comparison = replace(comparison, unavailable={"lpips": "weights <cannot> be fetched"})
    page = write_sheets(comparison, pairs, out).read_text()
    for pair in pairs:
        assert f"sheets/{pair.name}.png" in page
        with Image.open(out / "sheets" / f"{pair.name}.png") as sheet:
            # Input, three results and the original in a row; the details below.
            assert sheet.width == 5 * 256 + 6 * 8
            assert sheet.height > 2 * 256
    assert "LPIPS is not measured: weights &lt;cannot&gt; be fetched" in page
    assert 'data-src="results/narrow-w%3D1/petra.png"' in page


def test_the_finest_detail_is_where_neighbours_differ_most() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[24:32:2, 40:48] = 255
    top, left = finest(image, 8)
    assert abs(top - 23) <= 2
    assert abs(left - 40) <= 1


def answers(path: Path, key: dict[str, Any], choose: Callable[[dict[str, str]], str]) -> Path:
    choices = [{"trial": t["trial"], "choice": choose(t), "seconds": 1.0} for t in key["trials"]]
    write_json(path, {"study": key["study"], "answers": choices})
    return path


def test_a_study_is_blind_and_its_tally_puts_the_names_back(scores: Scores) -> None:
    _, pairs, out = scores
    page = write_study(pairs, "narrow w=1", ["bicubic", "narrow w=0"], out, seed=2)
    visible = page.read_text() + " ".join(p.name for p in page.parent.rglob("*"))
    for name in ("bicubic", "narrow", "petra"):
        assert name not in visible
    key = json.loads((out / "study-key.json").read_text())
    assert len(key["trials"]) == 4
    assert {t["a"] for t in key["trials"]} > {"narrow w=1"}, "ours must stand on both sides"

    def ours(trial: dict[str, str]) -> str:
        return "a" if trial["a"] == "narrow w=1" else "b"

    def first_side(trial: dict[str, str]) -> str:
        return "a"

    first = answers(out / "1.json", key, ours)
    second = answers(out / "2.json", key, lambda trial: "none")
    preferences = tally(out / "study-key.json", [first, second])
    assert [(p.against, p.wins, p.losses, p.ties) for p in preferences] == [
        ("bicubic", 2, 0, 2),
        ("narrow w=0", 2, 0, 2),
    ]
    assert preferences[0].share == 1
    interval = preferences[0].interval
    assert interval is not None
    assert interval[0] == pytest.approx(0.342, abs=1e-3)
    ties = tally(out / "study-key.json", [second])
    assert ties[0].share is None
    by_side = tally(out / "study-key.json", [answers(out / "3.json", key, first_side)])
    assert sum(p.wins for p in by_side) == sum(t["a"] == "narrow w=1" for t in key["trials"])


def test_answers_to_another_study_or_none_at_all_are_refused(scores: Scores) -> None:
    _, pairs, out = scores
    write_study(pairs, "narrow w=1", ["bicubic"], out)
    key = json.loads((out / "study-key.json").read_text())
    path = answers(out / "a.json", {**key, "study": "other"}, lambda trial: "a")
    with pytest.raises(BadStudy, match="answers the study other"):
        tally(out / "study-key.json", [path])
    path = answers(out / "a.json", key, lambda trial: "c")
    with pytest.raises(BadStudy, match="none to this study"):
        tally(out / "study-key.json", [path])
    broken = out / "broken.json"
    broken.write_text("{")
    with pytest.raises(BadStudy, match="is not JSON"):
        tally(out / "study-key.json", [broken])
    with pytest.raises(BadStudy, match="is no key"):
        tally(path, [path])

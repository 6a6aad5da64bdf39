"""`stablesr evaluate` as a person types it, on networks that take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from evaluation.images import write
from models.pipeline import StableSR
from tests.evaluation.conftest import NARROWER, NATIVE, crop, write_originals

runner = CliRunner()
WIDE = {"COLUMNS": "200"}


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures; whatever preset is asked for, narrow networks are loaded."""
    sr = StableSR.load(NARROWER, NATIVE)
    monkeypatch.setattr("worker.device.load", lambda settings, jobs: sr)
    return write_originals(tmp_path / "hr")


def test_one_command_degrades_compares_and_writes_pages_and_its_study_is_tallied(
    originals: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = "--degrade mild --offline --fidelity-weight 0 --fidelity-weight 0.5 --steps 1"
    command = ["evaluate", "--hr", str(originals), *options.split(), "--out", str(out)]
    result = runner.invoke(app, command, env=WIDE)
    assert result.exit_code == 0, result.output
    for word in ("bicubic", "narrow w=0.5", "paper, DRealSR", "PSNR", "0.6356", "2 images, x4"):
        assert word in result.stdout
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["settings"]["degrade"], scores["settings"]["steps"]) == ("mild", 1)
    assert (out / "index.html").exists()
    assert (out / "sheets" / "petra.png").exists()
    key = json.loads((out / "study-key.json").read_text())
    assert key["method"] == "narrow w=0.5"
    answers = {
        "study": key["study"],
        "answers": [{"trial": t["trial"], "choice": "a"} for t in key["trials"]],
    }
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    command = ["evaluate", "tally", str(tmp_path / "answers.json")]
    result = runner.invoke(app, [*command, "--key", str(out / "study-key.json")], env=WIDE)
    assert result.exit_code == 0, result.output
    assert "narrow w=0.5" in result.stdout
    assert "bicubic" in result.stdout


def test_programs_get_the_scores_as_json_on_the_standard_output(
    originals: Path, tmp_path: Path
) -> None:
    (originals / "kitten.png").unlink()
    lr = tmp_path / "lr"
    write(lr / "petra.png", crop("petra", 64, 64))
    folders = ["--lr", str(lr), "--hr", str(originals), "--out", str(tmp_path / "out")]
    options = ["--json", "--offline", "--fidelity-weight", "1", "--steps", "1"]
    result = runner.invoke(app, ["evaluate", *folders, *options])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["methods"]) == {"bicubic", "narrow w=1"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("--hr {hr}", 2, "either --lr or --degrade"),
        ("--hr {hr} --lr {hr} --degrade paper", 2, "either --lr or --degrade"),
        ("--lr {hr}", 2, "Give --hr"),
        ("--hr {hr}/absent --degrade paper", 3, "There is no folder"),
        ("--hr {hr} --degrade bicubic --baseline nearest", 2, "is none of bicubic"),
        ("tally {hr}/petra.png --key {hr}/absent.json", 3, "absent.json cannot be read"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_sentence(
    originals: Path, tmp_path: Path, arguments: str, code: int, sentence: str
) -> None:
    given = arguments.format(hr=originals).split()
    if "--degrade" in given:
        given += ["--out", str(tmp_path / "out")]
    result = runner.invoke(app, ["evaluate", *given], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    assert sentence in result.output.replace("\n", " ")

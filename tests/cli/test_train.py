"""`stablesr train` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.training.small_run import base_weights, write_photographs

runner = CliRunner()

CONFIG = """
device = "cpu"
base = "{base}"
[data]
photographs = "{photographs}"
[encoder]
crop = 64
[encoder.loop]
steps = 4
batch = 2
log_every = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    photographs = write_photographs(tmp_path / "photographs")
    base = base_weights(tmp_path / "base")
    path.write_text(CONFIG.format(base=base, photographs=photographs))
    return path


def test_a_stage_is_trained_stopped_and_gone_on_with(config: Path, tmp_path: Path) -> None:
    command = ["train", "encoder", "--config", str(config), "--out", str(tmp_path / "out")]
    first = runner.invoke(app, [*command, "--max-steps", "2"])
    assert first.exit_code == 0, first.output
    assert (tmp_path / "out" / "encoder" / "weights" / "model.safetensors").is_file()
    again = runner.invoke(app, command)
    assert again.exit_code == 3
    assert "go on with it with --resume" in again.output
    assert runner.invoke(app, [*command, "--resume"]).exit_code == 0
    assert (tmp_path / "out" / "encoder" / "finished").is_file()


def test_what_cannot_be_trained_is_said_in_one_sentence(config: Path, tmp_path: Path) -> None:
    command = ["train", "encoder", "--config", str(config), "--out", str(tmp_path / "out")]
    nothing = runner.invoke(app, [*command, "--photographs", str(tmp_path / "nowhere")])
    assert nothing.exit_code == 3
    assert "There is no folder" in nothing.output
    config.write_text(config.read_text().replace("steps = 4", "stepps = 4"))
    wrong = runner.invoke(app, command)
    assert wrong.exit_code == 2
    assert "encoder.loop.stepps: there is no such key" in wrong.output

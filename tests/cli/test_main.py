"""The command as a person types it: help, options, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.processes import free_port
from tests.training.small_run import base_weights, write_photographs

runner = CliRunner()

TRAINING = """
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


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = runner.invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("up", "serve", "worker", "upscale", "demo", "Exit codes: 0 success"):
        assert word in result.output


def test_the_version_is_the_packages() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"stablesr {version('stablesr-server')}\n"


def test_help_and_a_remote_upscale_need_no_torch_and_name_a_server_that_is_away(
    image: Path, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'diffusers', 'numpy'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from cli.main import app\n"
        "app()\n"
    )
    arguments = ["upscale", str(image), str(tmp_path / "out.png"), "--server", address]
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 4, ended.stderr
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("mode", [[], ["--server", "http://127.0.0.1:1"]], ids=["local", "remote"])
def test_a_missing_input_ends_with_3_before_any_work(mode: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "none.png"
    result = runner.invoke(app, ["upscale", str(missing), str(tmp_path / "out.png"), *mode])
    assert result.exit_code == 3
    assert "There is no file" in result.stderr


def test_an_input_that_is_no_image_ends_with_3(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    result = runner.invoke(app, ["upscale", str(text), str(tmp_path / "out.png")])
    assert result.exit_code == 3
    assert "is not an image" in result.stderr


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("out.gif", "must end in one of .png, .webp, .avif, .jpg"),
        ("no/out.png", "there is no folder"),
    ],
)
def test_an_output_that_cannot_be_written_ends_with_3_before_any_work(
    image: Path, tmp_path: Path, target: str, reason: str
) -> None:
    result = runner.invoke(app, ["upscale", str(image), str(tmp_path / target)])
    assert result.exit_code == 3
    assert reason in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "option",
    [["--fidelity-weight", "1.5"], ["--scale", "0.5"], ["--steps", "0"], ["--color-fix", "hue"]],
)
def test_an_option_out_of_range_ends_with_2(image: Path, tmp_path: Path, option: list[str]) -> None:
    result = runner.invoke(app, ["upscale", str(image), str(tmp_path / "out.png"), *option])
    assert result.exit_code == 2
    assert option[0] in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prompt", "a cat"], "prompt must be left out for tiny"),
        (["--eta", "0.5"], "eta must be left out for the sampler ddpm"),
        (["--guidance-scale", "3"], "guidance_scale must be 1 without prompt"),
    ],
)
def test_choices_that_do_not_fit_end_with_2_and_a_sentence(
    image: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    result = runner.invoke(app, ["upscale", str(image), str(tmp_path / "out.png"), *options])
    assert result.exit_code == 2
    assert f"Error: {sentence}" in result.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_wrong_setting_ends_with_2_and_its_name() -> None:
    result = runner.invoke(app, ["serve"], env={"STABLESR_MAX_QUEUED": "many"})
    assert result.exit_code == 2
    assert "STABLESR_MAX_QUEUED" in result.stderr
    assert "many" in result.stderr


def test_an_open_address_without_consent_ends_with_2_and_what_to_set() -> None:
    result = runner.invoke(app, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 2
    assert "STABLESR_ACCESS" in result.stderr


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    photographs = write_photographs(tmp_path / "photographs")
    base = base_weights(tmp_path / "base")
    path.write_text(TRAINING.format(base=base, photographs=photographs))
    return path


def test_a_stage_is_trained_stopped_and_gone_on_with(training: Path, tmp_path: Path) -> None:
    command = ["train", "encoder", "--config", str(training), "--out", str(tmp_path / "out")]
    first = runner.invoke(app, [*command, "--max-steps", "2"])
    assert first.exit_code == 0, first.output
    assert (tmp_path / "out" / "encoder" / "weights" / "model.safetensors").is_file()
    again = runner.invoke(app, command)
    assert again.exit_code == 3
    assert "go on with it with --resume" in again.output
    assert runner.invoke(app, [*command, "--resume"]).exit_code == 0
    assert (tmp_path / "out" / "encoder" / "finished").is_file()


def test_what_cannot_be_trained_is_said_in_one_sentence(training: Path, tmp_path: Path) -> None:
    command = ["train", "encoder", "--config", str(training), "--out", str(tmp_path / "out")]
    nothing = runner.invoke(app, [*command, "--photographs", str(tmp_path / "nowhere")])
    assert nothing.exit_code == 3
    assert "There is no folder" in nothing.output
    training.write_text(training.read_text().replace("steps = 4", "stepps = 4"))
    wrong = runner.invoke(app, command)
    assert wrong.exit_code == 2
    assert "encoder.loop.stepps: there is no such key" in wrong.output

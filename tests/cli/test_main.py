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

runner = CliRunner()


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
    [("out.gif", "must end in one of .png, .webp, .jpg"), ("no/out.png", "there is no folder")],
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
    assert "STABLESR_ALLOW_OPEN" in result.stderr

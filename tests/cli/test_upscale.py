"""`stablesr upscale` through a server, as a person runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from tests.scripted_server import DONE, IMAGE, JOB_ID, Script, job

runner = CliRunner()

PROGRESS = {"stage": "denoise", "step": 3, "steps": 20, "fraction": 0.2, "eta_seconds": 61.0}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.new("RGB", (8, 6), "teal").save(path)
    return path


def upscale(picture: Path, target: str, script: Script, *options: str) -> Result:
    arguments = ["upscale", str(picture), str(picture.parent / target), "--server", script.url]
    return runner.invoke(app, [*arguments, *options])


def test_a_result_arrives_with_what_was_asked_for(picture: Path, script: Script) -> None:
    script.add("POST /upscale", 202, job("queued", queue_position=2))
    script.add(f"GET /jobs/{JOB_ID}", 200, job("processing", progress=PROGRESS), Retry_After="0")
    script.add(f"GET /jobs/{JOB_ID}", 200, job("succeeded", result=DONE))
    script.add(f"GET /jobs/{JOB_ID}/result", 200, IMAGE)
    result = upscale(picture, "out.webp", script, "--scale", "2.5", "--color-fix", "wavelet")
    assert result.exit_code == 0, result.output
    assert (picture.parent / "out.webp").read_bytes() == IMAGE
    [(_, body)] = script.calls("POST /upscale")
    for name, value in {"scale": "2.5", "color_fix": "wavelet", "output_format": "webp"}.items():
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in body
    assert b'name="steps"' not in body
    for words in ("queued (2)", "denoise", "seed 7"):
        assert words in result.stderr


def test_the_key_of_the_environment_is_sent(picture: Path, script: Script) -> None:
    script.add("POST /upscale", 401, {"title": "The API key is wrong"})
    arguments = ["upscale", str(picture), str(picture.parent / "out.png"), "--server", script.url]
    result = runner.invoke(app, arguments, env={"STABLESR_API_KEY": "ssr_1"})
    assert result.exit_code == 5
    assert "The API key is wrong" in result.stderr
    assert "ssr_1" not in result.output
    assert script.calls("POST /upscale")[0][0]["authorization"] == "Bearer ssr_1"


def test_an_address_without_a_scheme_ends_with_2(picture: Path) -> None:
    target = picture.parent / "out.png"
    result = runner.invoke(app, ["upscale", str(picture), str(target), "--server", "host:80"])
    assert result.exit_code == 2
    assert "--server host:80: an address begins with http" in result.stderr


def test_a_refusal_ends_with_5_and_the_servers_words(picture: Path, script: Script) -> None:
    problem = {"title": "The image has too many pixels", "detail": "48 are more than 40."}
    script.add("POST /upscale", 422, problem)
    result = upscale(picture, "out.png", script)
    assert result.exit_code == 5
    assert "The image has too many pixels: 48 are more than 40." in result.stderr


def test_a_failed_job_ends_with_6_and_leaves_no_file(picture: Path, script: Script) -> None:
    script.add("POST /upscale", 202, job("queued"))
    problem = {"title": "Out of memory", "detail": "Ask for less [sic]."}
    script.add(f"GET /jobs/{JOB_ID}", 200, job("failed", error=problem))
    result = upscale(picture, "out.png", script)
    assert result.exit_code == 6
    assert "Out of memory: Ask for less [sic]." in result.stderr
    assert list(picture.parent.iterdir()) == [picture]


def test_ctrl_c_cancels_the_job_and_ends_with_130(picture: Path, script: Script) -> None:
    script.add("POST /upscale", 202, job("queued", queue_position=1))
    script.add(f"GET /jobs/{JOB_ID}", 200, job("processing"), Retry_After="0")
    script.add(f"DELETE /jobs/{JOB_ID}", 202, job("processing"))
    target = picture.parent / "out.png"
    command = [sys.executable, "-m", "cli", "upscale", str(picture), str(target)]
    with subprocess.Popen(
        [*command, "--server", script.url], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # Said when the first state has been seen: the job is there and is being waited for.
        for line in process.stderr:
            if "queued" in line:
                break
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
        rest = process.stderr.read()
    assert f"The job {JOB_ID} was canceled." in rest
    assert len(script.calls(f"DELETE /jobs/{JOB_ID}")) == 1
    assert not target.exists()

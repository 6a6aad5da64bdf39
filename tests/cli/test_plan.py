"""`stablesr plan` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

runner = CliRunner()


def test_it_says_size_tiles_memory_and_arithmetic_without_weights() -> None:
    result = runner.invoke(
        app,
        ["plan", "480x270", "--preset", "stablesr-512", "--device", "cuda", "--memory", "8GB"],
        env={"COLUMNS": "120"},
    )
    assert result.exit_code == 0
    assert "480 x 270 -> 1920 x 1080 pixels: 28 tiles of 64 x 64" in result.stdout
    for word in ("load", "encode", "denoise, 200 steps", "decode", "TFLOP", "device memory"):
        assert word in result.stdout


def test_programs_get_it_as_json_on_the_standard_output() -> None:
    options = "--scale 2 --steps 10 --overlap 16 --tile-batch 3 --decode-tile 40 --memory 8GB"
    result = runner.invoke(app, f"plan 512x256 --preset stablesr-512 {options} --json".split())
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["result"], found["canvas"]) == ([1024, 512], [1024, 512])
    assert (found["tile_batch"], found["decode_tile"], found["overlap"]) == (3, 40, 16)
    assert found["tiles"] == 3
    assert found["flops"]["step"] == pytest.approx(3 * 0.965e12, rel=0.01)
    assert found["flops"]["steps"] == 10
    assert found["peak_bytes"]["decode"]["host"] < 8e9


def test_a_small_input_is_computed_at_the_least_size() -> None:
    result = runner.invoke(app, ["plan", "20x10", "--memory", "4GB"], env={"COLUMNS": "120"})
    assert "20 x 10 -> 80 x 40 pixels, computed at 256 x 128: 1 tiles of 32 x 16" in result.stdout
    assert "10 times those of its result, because its shorter side is enlarged" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("640", 2, "must be WIDTHxHEIGHT, such as 640x480"),
        ("0x5", 2, "must be WIDTHxHEIGHT"),
        ("20000x1", 2, "would be computed at 2560000 x 128 = "),
        ("64x64 --memory 1GB --preset stablesr-512", 6, "needs at least"),
        ("64x64 --memory lots", 2, "such as 6GB"),
        ("64x64 --overlap 64 --memory 4GB", 2, "tile_overlap is 64"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_sentence(
    arguments: str, code: int, sentence: str
) -> None:
    result = runner.invoke(app, ["plan", *arguments.split()], env={"COLUMNS": "400"})
    assert result.exit_code == code
    assert sentence in result.output.replace("\n", " ")


@pytest.mark.parametrize("option", [["--decode-tile", "8"], ["--compile"], ["--no-compile"]])
def test_how_this_machine_is_used_is_no_servers_business(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "in.png").write_bytes(b"")
    files = [str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    options = ["--server", "http://127.0.0.1:1", *option]
    result = runner.invoke(app, ["upscale", *files, *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "for this machine, not for a server" in result.output

"""The six commands with sizes that take no time, and the tables of what they wrote."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import benchmarks.requests
import benchmarks.stack
from benchmarks import image, io, memory, quality, service, step
from benchmarks.model import DTYPES, Model, Variant
from benchmarks.results import Measurement, Result
from models.memory import MemoryBudget
from models.pipeline import StableSR
from tests.models import narrow

Command = Callable[[str, str], Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command with its JSON in a file, and every process of its own as a call."""

    def run(name: str, arguments: str) -> Result:
        path = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *arguments.split(), "--json", str(path)])
        importlib.import_module(f"benchmarks.{name}").main()
        return Result.read(path)

    def load(model: Model, variant: Variant, budget: MemoryBudget | None = None) -> StableSR:
        weights = narrow.CONFIG, narrow.PRESET, "cpu", DTYPES[variant.dtype]
        return StableSR.load(*weights, budget, fuse=variant.fuse)

    def call(run: Callable[[Any], Any], task: Any) -> Any:
        return run(task)

    for module in (step, image, memory, quality):
        monkeypatch.setattr(module, "load", load)
    for module in (step, image, memory):
        monkeypatch.setattr(module, "alone", call)
    return run


def test_step_compares_with_the_eager_networks(command: Command) -> None:
    result = command(
        "step", "--compare eager --compile off --dtypes fp32 --batch 1 2 --repeats 1 --device cpu"
    )
    names = ["eager fp32", "eager bf16 autocast", "fused fp32", "fused fp32, Winograd"]
    cases = [(m.variant, m.case) for m in result.measurements if m.quantity == "a tile and step"]
    assert cases == [
        (name, f"batch {batch}") for batch in (1, 2) for name in [*names, "optimised fp32"]
    ]
    assert all(m.value > 0 for m in result.measurements)


def test_image_has_every_stage_of_all_that_is_compared(command: Command) -> None:
    result = command(
        "image", "--sizes 64 --w 0 0.5 --repeats 1 --compare before --compare bicubic --device cpu"
    )
    stages = [m.quantity for m in result.measurements if m.variant == "fp32"]
    assert stages == 2 * [*image.STAGES, "all", "peak memory"]
    totals = [(m.variant, m.case) for m in result.measurements if m.quantity == "all"]
    assert totals == [
        (name, f"64 px, w = {w}") for name in ("bicubic", "before fp32", "fp32") for w in (0, 0.5)
    ]


def test_memory_has_the_slope_from_the_first_size_to_the_last(command: Command) -> None:
    result = command("memory", "--sizes 64 640 --overlap 0 --device cpu")
    peaks = [m for m in result.measurements if m.quantity == "peak memory"]
    assert [m.case for m in peaks] == ["64 px", "640 px"]
    assert result.measurements[-1].case == "64 px to 640 px"
    assert result.measurements[-1].quantity == "slope"


def test_quality_scores_every_combination(command: Command) -> None:
    result = command("quality", "--images 1 --size 256 --w 0 1 --steps 1 2 --device cpu")
    psnr = {m.variant: m.value for m in result.measurements if m.quantity == "PSNR"}
    assert list(psnr) == [f"ddpm, {steps} steps, w = {w}" for steps in (1, 2) for w in (0, 1)]
    # Random networks, and the colours of the input.
    assert all(5 < value < 40 for value in psnr.values())
    differences = [m.value for m in result.measurements if m.quantity == "differing by"]
    assert differences[0] == 0 < max(differences)


def test_quality_asks_a_checkout_the_same_and_puts_it_first(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def other(*call: object) -> list[Measurement]:
        calls.extend(call)
        return [Measurement("other", "", "PSNR", 30.0, "score")]

    monkeypatch.setattr(quality, "measure_checkout", other)
    result = command("quality", f"--images 1 --w 0 --compare {tmp_path} --size 192 --device cpu")
    assert next(m.variant for m in result.measurements if m.quantity == "PSNR") == "other"
    assert calls[:2] == [tmp_path, "quality"]
    arguments = ["--images", "1", "--w", "0", "--size", "192", "--device", "cpu", "--json"]
    assert calls[2][:-1] == arguments  # type: ignore[index]  # the list of them; a file follows


def test_io_reads_and_writes_every_format(command: Command) -> None:
    result = command("io", "--side 64 --repeats 1")
    cases = {m.case for m in result.measurements}
    assert cases == {
        f"{what} {format}"
        for what in ("read", "write")
        for format in ("png", "webp", "jpeg", "tiff", "avif")
    }
    assert {m.variant for m in result.measurements} == set(io.READERS)


def test_service_measures_every_part_of_a_running_service(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.stack, "ModelConfig", lambda: narrow.CONFIG)
    monkeypatch.setattr(benchmarks.requests, "GETS", 40)
    monkeypatch.setattr(benchmarks.requests, "POSTS", 10)
    monkeypatch.setattr(benchmarks.requests, "ROUNDS", 1)
    result = command(
        "service",
        "--preset stablesr-512 --device cpu --parts latency together fairness requests memory "
        "--jobs 1 --size 64 --steps 1 --large 64 --small 1 --late 1",
    )
    values = {(m.case, m.quantity): m.value for m in result.measurements}
    assert values["POST to first step", "median"] > values["of it overhead", "median"] > 0
    assert values["jobs together", "differing by"] <= 1
    assert values["small ones submitted later", "in total at most"] > 0
    assert values["processor time a request", "POST /upscale"] > 0
    assert values["peak memory", "worker"] > values["peak memory", "service"] > 10**7


def test_the_report_has_one_table_for_all_results_of_a_machine(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    command("io", "--side 64 --repeats 1")
    command("quality", "--images 1 --size 256 --w 0 --device cpu")
    files = [str(tmp_path / name) for name in ("io.json", "quality.json")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *files])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("benchmarks", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("## ")]) == 1
    assert len([line for line in lines if "python -m benchmarks." in line]) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("image", "--sizes 64 66", "66 is not"),
        ("image", "--repeats 0", "must be at least 1"),
        ("image", "--weights random", "tiny comes with its weights"),
        ("step", "--compare nowhere", "eager or the folder of a checkout, but is nowhere"),
        ("service", "--jobs 0", "there must be a job"),
        ("service", "--compare PATH=x", "STABLESR_NAME=VALUE, but is PATH=x"),
        ("memory", "--sizes 66", "66 is not"),
        ("quality", "--images 0", "there must be an image"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    name: str, arguments: str, reason: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(name, arguments)
    assert reason in " ".join(capsys.readouterr().err.split())


def test_settings_and_checkouts_are_told_apart(tmp_path: Path) -> None:
    assert service.variant_of(str(tmp_path)).checkout == tmp_path
    assert service.variant_of("STABLESR_COMPILE=on").settings == {"STABLESR_COMPILE": "on"}

"""`stablesr upscale` of one image, through a server and here, as a person runs it; and which images
of a folder are over a limit, and what `--fit` makes of them.
"""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from cli.options import UpscaleOptions
from tests.cli.fake_service import FakeService, result_of
from tests.cli.folders import StubModel, last_states, names
from tests.cli.folders import upscale as upscale_folder
from tests.cli.windows import on_windows
from tests.scripted_server import DONE, IMAGE, JOB_ID, Script, job

runner = CliRunner()
LIMITS = {"max_upload_bytes": 3000, "max_input_pixels": 300_000, "max_output_pixels": 1_000_000}

PROGRESS = {"stage": "denoise", "step": 3, "steps": 20, "fraction": 0.2, "eta_seconds": 61.0}


def upscale(image: Path, *options: str, target: str = "out.png") -> Result:
    return runner.invoke(app, ["upscale", str(image), str(image.parent / target), *options])


def results(image: Path) -> list[str]:
    return sorted(path.name for path in image.parent.iterdir() if path != image)


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(path) as image:
        return np.asarray(image, np.int16)


def test_a_result_arrives_with_what_was_asked_for(image: Path, script: Script) -> None:
    script.add("POST /upscale", 202, job("queued", queue_position=2))
    script.add(f"GET /jobs/{JOB_ID}", 200, job("processing", progress=PROGRESS), Retry_After="0")
    script.add(f"GET /jobs/{JOB_ID}", 200, job("succeeded", result=DONE))
    script.add(f"GET /jobs/{JOB_ID}/result", 200, IMAGE)
    result = upscale(
        image,
        *("--server", script.url, "--scale", "2.5", "--color-fix", "wavelet"),
        *("--priority", "low", "--expires-in", "3600"),
        target="out.webp",
    )
    assert result.exit_code == 0, result.output
    assert (image.parent / "out.webp").read_bytes() == IMAGE
    [(_, body)] = script.calls("POST /upscale")
    form = {"scale": "2.5", "color_fix": "wavelet", "output_format": "webp"}
    for name, value in {**form, "priority": "low", "expires_in": "3600"}.items():
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in body
    assert b'name="steps"' not in body
    for words in ("queued (2)", "denoise", "seed 7"):
        assert words in result.stderr


def test_priority_and_deadline_are_a_servers(image: Path) -> None:
    result = upscale(image, "--priority", "low")
    assert (result.exit_code, "--server" in result.stderr) == (2, True)


def test_the_key_of_the_environment_is_sent(image: Path, script: Script) -> None:
    script.add("POST /upscale", 401, {"title": "The API key is wrong"})
    arguments = ["upscale", str(image), str(image.parent / "out.png"), "--server", script.url]
    result = runner.invoke(app, arguments, env={"STABLESR_API_KEY": "ssr_1"})
    assert result.exit_code == 5
    assert "The API key is wrong" in result.stderr
    assert "ssr_1" not in result.output
    assert script.calls("POST /upscale")[0][0]["authorization"] == "Bearer ssr_1"


def test_an_address_without_a_scheme_ends_with_2(image: Path) -> None:
    target = image.parent / "out.png"
    result = runner.invoke(app, ["upscale", str(image), str(target), "--server", "host:80"])
    assert result.exit_code == 2
    assert "--server host:80: an address begins with http" in result.stderr


def test_a_refusal_ends_with_5_and_the_servers_words(image: Path, script: Script) -> None:
    problem = {"title": "The image has too many pixels", "detail": "48 are more than 40."}
    script.add("POST /upscale", 422, problem)
    result = upscale(image, "--server", script.url)
    assert result.exit_code == 5
    assert "The image has too many pixels: 48 are more than 40." in result.stderr


def test_a_failed_job_ends_with_6_and_leaves_no_file(image: Path, script: Script) -> None:
    script.add("POST /upscale", 202, job("queued"))
    problem = {"title": "Out of memory", "detail": "Ask for less [sic]."}
    script.add(f"GET /jobs/{JOB_ID}", 200, job("failed", error=problem))
    result = upscale(image, "--server", script.url)
    assert result.exit_code == 6
    assert "Out of memory: Ask for less [sic]." in result.stderr
    assert list(image.parent.iterdir()) == [image]


def test_ctrl_c_cancels_the_job_and_ends_with_130(image: Path, script: Script) -> None:
    script.add("POST /upscale", 202, job("queued", queue_position=1))
    script.add(f"GET /jobs/{JOB_ID}", 200, job("processing"), Retry_After="0")
    script.add(f"DELETE /jobs/{JOB_ID}", 202, job("processing"))
    target = image.parent / "out.png"
    command = [sys.executable, "-m", "cli", "upscale", str(image), str(target)]
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


def test_seeds_follow_each_other_and_begin_again_after_the_last() -> None:
    options = UpscaleOptions(Path("in.png"), Path("a/out.webp"), seeds=3)
    targets = options.targets(2**32 - 2)
    assert [(seed, str(path)) for seed, path in targets.items()] == [
        (4294967294, "a/out-4294967294.webp"),
        (4294967295, "a/out-4294967295.webp"),
        (0, "a/out-0.webp"),
    ]


def test_each_seed_is_a_job_of_its_own_on_a_server(image: Path, service: FakeService) -> None:
    ended = upscale(image, "--server", service.url, "--seeds", "3", "--seed", "8", "--scale", "2")
    assert ended.exit_code == 0, ended.output
    assert results(image) == ["out-10.png", "out-8.png", "out-9.png"]
    for seed in ("8", "9", "10"):
        asked = {"seed": seed, "scale": "2.0", "output_format": "png", "metadata": "keep"}
        expected = result_of(image.read_bytes(), asked)
        assert (image.parent / f"out-{seed}.png").read_bytes() == expected


def test_a_failed_job_ends_it_and_the_others_are_canceled(
    image: Path, service: FakeService
) -> None:
    service.fail = service.hold = {"in.png"}
    ended = upscale(image, "--server", service.url, "--seeds", "3")
    assert ended.exit_code == 6
    assert "The worker broke" in ended.stderr
    assert service.states()["in.png"][1:] == ["canceled", "canceled"]
    assert results(image) == []


def test_here_each_file_is_what_its_seed_gives_alone(image: Path) -> None:
    # One step of the embedded weights draws no noise.
    few = ("--steps", "2", "--fidelity-weight", "0")
    ended = upscale(image, "--seeds", "2", "--seed", "5", *few)
    assert ended.exit_code == 0, ended.output
    assert results(image) == ["out-5.png", "out-6.png"]
    alone = upscale(image, "--seed", "6", *few)
    assert alone.exit_code == 0, alone.output
    names = ("out-5.png", "out-6.png", "out.png")
    first, second, single = (pixels(image.parent / name) for name in names)
    assert np.abs(second - single).max() <= 1
    assert np.abs(first - second).max() > 1


@pytest.mark.parametrize(
    ("length", "options"), [(256, []), (255, ["--seeds", "2"])], ids=["name", "name with a seed"]
)
def test_a_name_that_is_too_long_is_told_before_any_work(
    image: Path, service: FakeService, length: int, options: list[str]
) -> None:
    target = f"{'x' * (length - 4)}.png"
    ended = upscale(image, "--server", service.url, *options, target=target)
    assert ended.exit_code == 3
    assert "cannot be written: File name too long." in ended.stderr
    assert service.uploads == []


def test_a_file_with_the_longest_of_names_becomes_one(image: Path) -> None:
    source = image.rename(image.with_name(f"{'x' * 251}.png"))
    few = ("--steps", "1", "--fidelity-weight", "0", "--scale", "1")
    ended = upscale(source, *few, target=f"{'y' * 251}.png")
    assert ended.exit_code == 0, ended.output
    assert results(source) == [f"{'y' * 251}.png"]


def test_a_page_that_is_not_there_ends_it_before_anything_is_loaded(tmp_path: Path) -> None:
    source = tmp_path / "in.tif"
    pages = [Image.new("RGB", (16, 16)), Image.new("RGB", (30, 20))]
    pages[0].save(source, save_all=True, append_images=pages[1:])
    for options, words in (((), "has 2 pages"), (("--page", "3"), "page must be at most 2")):
        ended = upscale(source, *options)
        assert ended.exit_code == 3, ended.output
        assert words in ended.stderr
    ended = upscale(source, "--page", "2", "--scale", "2")
    assert ended.exit_code == 0, ended.output
    assert pixels(tmp_path / "out.png").shape == (40, 60, 3)


def test_a_folder_has_no_seeds(image: Path) -> None:
    arguments = ["upscale", str(image.parent), str(image.parent / "out"), "--seeds", "2"]
    ended = runner.invoke(app, arguments)
    assert ended.exit_code == 2
    assert "--seeds is for one image" in ended.stderr


def test_an_image_of_several_tiles_over_two_devices_is_that_of_one(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (128, 140, 3), np.uint8)
    image = tmp_path / "in.png"
    Image.fromarray(levels).save(image)
    few = ("--steps", "1", "--seed", "3", "--fidelity-weight", "0")
    alone = upscale(image, *few, target="alone.png")
    assert alone.exit_code == 0, alone.output
    both = upscale(image, *few, "--devices", "cpu, cpu", target="both.png")
    assert both.exit_code == 0, both.output
    assert "s on cpu, cpu." in both.output
    difference = np.abs(pixels(tmp_path / "alone.png") - pixels(tmp_path / "both.png"))
    assert int(difference.max()) <= 1


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("cuda:0,cuda:0", "cuda:0 twice; each GPU can be there once"),
        ("cpu,nonsense", "'nonsense', which cannot be used here"),
    ],
)
def test_devices_that_cannot_be_used_are_named(image: Path, names: str, reason: str) -> None:
    ended = upscale(image, "--devices", names)
    assert ended.exit_code == 2
    assert reason in " ".join(ended.output.split())
    assert results(image) == []


def test_on_windows_a_folder_goes_through_a_server_and_is_resumed(
    photos: Path, out: Path, service: FakeService
) -> None:
    command: list[str | Path] = ["upscale", photos, out, "--server", service.url]
    ended = on_windows(command, command)
    assert ended.returncode == 0, ended.stderr
    assert "0 images to do, 3 done before" in ended.stderr
    assert names(out) == ["a.png", "b.png", "sub/c.png"]
    assert set(last_states(out).values()) == {"done"}
    assert len(service.uploads) == 3


def test_on_windows_only_one_run_works_in_a_folder(
    photos: Path, out: Path, service: FakeService
) -> None:
    out.mkdir()
    with (out / ".stablesr.jsonl").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = on_windows(["upscale", photos, out, "--server", service.url])
    assert ended.returncode == 3
    assert "Another run is at work" in ended.stderr


def test_on_windows_a_file_goes_through_a_server(image: Path, service: FakeService) -> None:
    target = image.parent / "out.png"
    ended = on_windows(["upscale", image, target, "--server", service.url, "--seed", "1"])
    assert ended.returncode == 0, ended.stderr
    assert target.read_bytes().startswith(b"upscaled")


def test_on_windows_a_file_and_a_folder_are_upscaled(image: Path, tmp_path: Path) -> None:
    few = ("--steps", "1", "--fidelity-weight", "0", "--scale", "1")
    photos = tmp_path / "photos"
    photos.mkdir()
    image = image.rename(photos / "in.png")
    ended = on_windows(
        ["upscale", image, tmp_path / "out.png", *few],
        ["upscale", photos, tmp_path / "out", *few],
        how="local",
    )
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "out.png") as one, Image.open(tmp_path / "out" / "in.png") as other:
        assert one.size == other.size == (12, 9)


def test_what_cannot_run_on_windows_says_so_in_one_sentence() -> None:
    pull = ["weights", "pull", "stablesr-512"]
    ended = on_windows(["up"], ["serve"], ["worker"], ["demo"], [*pull])
    assert ended.returncode == 8
    for command in ("up", "serve", "worker", "demo", "weights pull"):
        assert f"Error: `stablesr {command}` does not run on Windows" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images that meet each limit, and one that meets none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (200, 100)).save(folder / "small.png")
    Image.new("RGB", (500, 400)).save(folder / "large.png")
    Image.new("RGB", (600, 501)).save(folder / "larger.png")
    Image.effect_noise((60, 60), 50).convert("RGB").save(folder / "heavy.png")
    return folder


def begun(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / ".stablesr.jsonl").read_text().splitlines()]
    return {line["input"]: line for line in lines if line["state"] == "begun"}


def test_what_is_over_a_limit_of_the_server_is_told_and_not_uploaded(
    mixed: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS
    size = (mixed / "heavy.png").stat().st_size
    assert size > 3000
    result = upscale_folder(mixed, out, "--server", service.url)
    assert result.exit_code == 9
    assert service.uploads == ["small.png"]
    for words in (
        f"heavy.png failed: It has {size} bytes; at most 3000 are taken.",
        "large.png failed: At scale 4 the result would have 2000 x 1600 = 3200000 pixels; at most "
        "1000000 are made.",
        "larger.png failed: The image has 600 x 501 = 300600 pixels; at most 300000 are taken.",
    ):
        assert words in result.stderr
    assert result.stderr.index("larger.png failed") < result.stderr.index("small.png ->")
    assert result.stderr.endswith("--fit makes them as large as is allowed.\n")


def test_an_image_that_fits_smaller_is_made_so_and_is_done_then(
    mixed: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS
    options = ("--server", service.url, "--fit")
    result = upscale_folder(mixed, out, *options)
    assert result.exit_code == 9
    assert names(out) == ["large.png", "small.png"]
    scales = {job.name: job.fields.get("scale") for job in service.jobs.values()}
    assert scales == {"large.png": "2.23", "small.png": None}
    assert "large.png is made at scale 2.23 instead of 4" in result.stderr
    assert "--fit makes" not in result.stderr
    assert {name: line.get("scale") for name, line in begun(out).items()} == {
        "large.png": 2.23,
        "small.png": None,
    }
    assert "2 images to do, 2 done before" in upscale_folder(mixed, out, *options).stderr
    # As large as was asked for it is not there.
    again = upscale_folder(mixed, out, "--server", service.url)
    assert "3 images to do, 1 done before" in again.stderr
    assert "large.png failed: At scale 4" in again.stderr
    assert len(service.uploads) == 2


def test_nothing_is_made_smaller_than_it_is(mixed: Path, out: Path, service: FakeService) -> None:
    service.limits = {"max_output_pixels": 150_000}
    result = upscale_folder(mixed, out, "--server", service.url, "--fit")
    assert result.exit_code == 9
    assert "large.png failed: At scale 1 the result would have 500 x 400 = 200000" in result.stderr
    assert names(out) == ["heavy.png", "small.png"]


@pytest.mark.parametrize("option", [("--width", "2000"), ("--megapixels", "3.2")])
def test_a_size_that_was_asked_for_is_lowered_too(
    mixed: Path, out: Path, service: FakeService, option: tuple[str, str]
) -> None:
    service.limits = {"max_output_pixels": 1_000_000}
    for name in ("small.png", "heavy.png", "larger.png"):
        (mixed / name).unlink()
    assert upscale_folder(mixed, out, "--server", service.url, "--fit", *option).exit_code == 0
    [job] = service.jobs.values()
    assert (job.fields["scale"], option[0][2:] in job.fields) == ("2.23", False)


def test_a_size_that_cannot_be_is_told_of_its_image_alone(
    mixed: Path, out: Path, service: FakeService
) -> None:
    result = upscale_folder(mixed, out, "--server", service.url, "--width", "550", "--overwrite")
    assert result.exit_code == 9
    assert "larger.png failed: width asks for 0.917 times the image" in result.stderr
    assert names(out) == ["heavy.png", "large.png", "small.png"]


def test_photographs_of_a_phone_are_judged_here_before_a_model_is_loaded(
    tmp_path: Path, out: Path, model: type[StubModel]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("IMG_1.jpg", "IMG_2.JPG"):
        Image.new("RGB", (4032, 3024), "teal").save(photos / name, exif=turned)
    result = upscale_folder(photos, out)
    assert result.exit_code == 9
    assert model.count == 0
    assert result.stderr.count("the result would have 12096 x 16128 = 195084288 pixels") == 2
    assert "2 images failed.\n--fit makes them as large as is allowed." in result.stderr
    assert upscale_folder(photos, out, "--fit").exit_code == 0
    # The largest canvas has 2^27 pixels.
    assert {parameters.scale for _, parameters in model.requests} == {3.31}


def test_the_longest_side_of_a_format_is_a_limit(
    tmp_path: Path, out: Path, model: type[StubModel]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (5000, 200)).save(photos / "a.png")
    result = upscale_folder(photos, out, "--format", "webp")
    assert "A webp file has at most 16383 pixels a side" in result.stderr
    assert upscale_folder(photos, out, "--format", "webp", "--fit").exit_code == 0
    assert [parameters.scale for _, parameters in model.requests] == [3.27]


def test_a_file_that_cannot_be_read_is_left_to_the_server(
    mixed: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS
    (mixed / "small.png").write_bytes(b"a format of next year")
    upscale_folder(mixed, out, "--server", service.url)
    assert service.uploads == ["small.png"]


def test_of_a_scan_the_page_that_is_asked_for_is_judged(
    tmp_path: Path, out: Path, service: FakeService
) -> None:
    service.limits = LIMITS | {"max_upload_bytes": 10_000_000}
    folder = tmp_path / "scans"
    folder.mkdir()
    pages = [Image.new("RGB", (20, 10)), Image.new("RGB", (500, 400))]
    pages[0].save(folder / "scan.tif", save_all=True, append_images=pages[1:])
    result = upscale_folder(folder, out, "--server", service.url, "--page", "2")
    assert "At scale 4 the result would have 2000 x 1600" in result.stderr
    assert service.uploads == []

"""`stablesr weights` as a person types it.

Of `prepare`: what keeps weights away is said, noted, and never an error.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from cli.processes import free_port
from cli.weights import put_in_place
from jobs.settings import Settings
from models import presets
from models.checkpoints.files import absence_of, preset_folder
from models.checkpoints.folder import load_folder
from models.pipeline import StableSR
from models.presets import PRESETS, Preset, get_preset
from tests.models.hub import Hub, small_preset
from tests.models.released import released, write_files
from tests.worker.processes import CONTEXT

PRESET = "stablesr-512"
LICENCE = "S-Lab License 1.0"

runner = CliRunner()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_files(tmp_path_factory.mktemp("files"), *released())


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights lie; no hub runs, and pauses before the next attempt are skipped."""
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "weights"


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """`prepare` is a process of its own: its handlers of signals and of log lines go with it."""
    handler, handlers = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger().handlers = handlers


class Said(NamedTuple):
    """The last line of the log, and the reason that a worker will tell."""

    line: dict[str, Any]
    reason: str | None


@pytest.fixture
def contents(files: tuple[Path, Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture
def preset(contents: dict[str, bytes]) -> Preset:
    return small_preset(contents)


def replace_preset(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "PRESETS", MappingProxyType({**PRESETS, PRESET: preset}))


@pytest.fixture
def hub(
    contents: dict[str, bytes], preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub with small files, which are those of stablesr-512 here."""
    replace_preset(preset, monkeypatch)
    with Hub(contents) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def run(*arguments: object) -> tuple[int, str]:
    """The exit code and all that is printed, on one line."""
    ended = runner.invoke(app, ["weights", *map(str, arguments)], env={"COLUMNS": "400"})
    return ended.exit_code, " ".join(ended.output.split())


def test_list_shows_every_preset_with_its_place_and_licence(root: Path) -> None:
    code, output = run("list")
    assert code == 0
    assert "tiny │ yes │ 25.0 MB │ float16" in output
    for name in PRESETS:
        assert name in output
    assert output.count("S-Lab License 1.0 (non-commercial)") == 4
    assert str(root / "stablesr-768v") in output


def test_convert_writes_where_the_preset_is_looked_for(
    files: tuple[Path, Path], root: Path
) -> None:
    code, output = run("convert", "stablesr-512", *files, "--shard-size", "2MB", "--text")
    assert code == 0, output
    assert "Left out: 12 tensors, tables of the noise schedule." in output
    assert "Not run:" in output
    assert "ModelCheckpoint" in output
    assert f"{root / 'stablesr-512'}: 8.2 MB in float16." in output
    assert len(list((root / "stablesr-512").glob("*-of-*.safetensors"))) > 2
    loaded = load_folder(root / "stablesr-512", torch.device("cpu"), torch.float32)
    assert loaded.text is not None
    assert "stablesr-512 │ yes │ 8.1 MB │ float16" in run("list")[1]

    code, output = run("convert", "stablesr-512", *files)
    assert (code, "is there already" in output) == (3, True)
    code, output = run("convert", "stablesr-512", *files, "--force", "--dtype", "bfloat16")
    assert (code, "in bfloat16" in output) == (0, True)


def test_verify_takes_a_preset_or_a_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    code, output = run("verify", "tiny")
    assert code == 0
    assert "all finite; no sums are recorded to compare the files with." in output
    assert run("convert", "stablesr-512", *files, "--out", tmp_path / "mine")[0] == 0
    code, output = run("verify", tmp_path / "mine")
    assert code == 0
    assert "the files are as they were written" in output
    with (tmp_path / "mine" / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    code, output = run("verify", tmp_path / "mine")
    assert (code, "was cut off" in output) == (3, True)
    code, output = run("verify", "stablesr-512")
    assert (code, "There are no weights in" in output) == (3, True)


def test_wrong_files_and_options_end_with_a_sentence(files: tuple[Path, Path]) -> None:
    code, output = run("convert", "stablesr-512", files[1], files[0])
    assert (code, "The two files are swapped" in output) == (3, True)
    code, output = run("convert", "stablesr-51", *files)
    assert (code, "'stablesr-51' is not one of tiny, stablesr-512" in output) == (2, True)
    code, output = run("convert", "stablesr-512", *files, "--shard-size", "2 apples")
    assert (code, "'2 apples' is no size such as 2GB" in output) == (2, True)
    code, output = run("convert", "tiny", *files)
    assert (code, "tiny comes with the package" in output) == (3, True)


def test_pull_shows_the_licence_and_does_nothing_without_consent(hub: Hub, root: Path) -> None:
    code, output = run("pull", "stablesr-512")
    assert code == 2
    assert "Read it first: https://github.com/IceClear/StableSR/blob/main/LICENSE.txt" in output
    assert "Say so with --accept-licence." in output
    assert hub.requests == []
    assert not root.exists()


def test_pull_downloads_and_converts_once_the_licence_is_accepted(hub: Hub, root: Path) -> None:
    code, output = run("pull", "stablesr-512", "--accept-licence")
    assert code == 0, output
    assert "downloading stablesr_000117.ckpt" in output
    assert f"{root / 'stablesr-512'}:" in output
    code, output = run("pull", "stablesr-512")
    assert (code, "are here already" in output) == (0, True)
    assert run("verify", "stablesr-512")[0] == 0


def test_a_file_whose_sum_is_not_published_is_told(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    renamed = tmp_path / "face_vqgan_cfw_00011.ckpt"
    renamed.write_bytes(files[1].read_bytes())
    code, output = run("convert", "stablesr-face", files[0], renamed)
    assert code == 0
    assert "face_vqgan_cfw_00011.ckpt was checked by its structure only" in output


def test_a_hub_without_the_files_ends_with_4(hub: Hub) -> None:
    hub.files.clear()
    code, output = run("pull", "stablesr-512", "--accept-licence")
    assert (code, "is not there (404)" in output) == (4, True)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def said(**settings: Any) -> Said:
        put_in_place(Settings(**{"preset": PRESET, **settings}))
        lines = capsys.readouterr().err.splitlines()
        return Said(json.loads(lines[-1]), absence_of(get_preset(PRESET)))

    return said


def test_a_preset_of_the_package_needs_nothing(root: Path, said: Any) -> None:
    line, reason = said(preset="tiny")
    assert line["event"] == "weights come with the package"
    assert reason is None
    assert not root.exists()


@pytest.mark.parametrize("accepted", [None, "yes", "S-Lab License 2.0"])
def test_without_consent_nothing_is_fetched_and_the_log_says_what_to_set(
    root: Path, said: Any, accepted: str | None
) -> None:
    line, reason = said(accept_licence=accepted)
    assert (line["event"], line["level"]) == ("weights are not there", "warning")
    assert f'STABLESR_ACCEPT_LICENCE="{LICENCE}"' in reason
    assert line["reason"] == reason
    assert line["licence"].startswith(LICENCE)
    assert line["licence_url"].startswith("https://")
    assert [path.name for path in root.iterdir()] == [f"{PRESET}.absent.json"]


def test_without_network_the_log_names_the_hub_and_the_note_does_not(root: Path, said: Any) -> None:
    line, reason = said(accept_licence=LICENCE)
    assert reason == line["reason"] == "its weights could not be downloaded"
    assert "http://127.0.0.1:" in line["detail"]
    assert not (root / PRESET).exists()


def test_without_room_nothing_is_fetched(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line, reason = said(accept_licence=LICENCE.lower())
    assert reason == "its weights do not fit on the disk"
    assert "1.0 GB" in line["detail"]


def test_an_unforeseen_error_is_logged_whole_and_noted(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **more: object) -> Path:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("models.checkpoints.pull.pull", broken)
    line, reason = said(accept_licence=LICENCE)
    assert reason == "its weights could not be put in place"
    assert "Traceback" in line["exception"]


def test_a_note_that_cannot_be_left_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.write_text("a file in the way")
    put_in_place(Settings(preset=PRESET))
    first, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["event"] == "weights are not there"
    assert last["event"] == "no note for the worker"


def test_weights_that_are_there_need_neither_consent_nor_network(root: Path, said: Any) -> None:
    said()
    shutil.copytree(preset_folder(get_preset("tiny")), root / PRESET)
    line, reason = said()
    assert (line["event"], line["level"]) == ("weights are there", "info")
    assert line["folder"] == str(root / PRESET)
    assert reason is None


def test_weights_that_cannot_be_used_are_left_alone_and_told(root: Path, said: Any) -> None:
    shutil.copytree(preset_folder(get_preset("tiny")), root / PRESET)
    weights = root / PRESET / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    line, reason = said(accept_licence=LICENCE)
    assert reason == "its weights cannot be used"
    assert str(weights) in line["detail"]
    assert weights.exists()


def test_the_command_takes_the_environments_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABLESR_PRESET", PRESET)
    result = runner.invoke(app, ["weights", "prepare"])
    assert result.exit_code == 0
    assert absence_of(get_preset(PRESET)) is not None


def test_the_example_of_settings_names_the_licence_that_is_asked_for(said: Any) -> None:
    example = Path(".env.example").read_text()
    assert f'STABLESR_ACCEPT_LICENCE="{LICENCE}"' in example
    assert f'STABLESR_ACCEPT_LICENCE="{LICENCE}"' in said().reason


def test_with_consent_the_weights_are_fetched_and_the_note_is_taken_away(
    root: Path, said: Any, hub: Hub
) -> None:
    assert said().reason is not None
    assert hub.requests == []
    line, reason = said(accept_licence=LICENCE)
    assert line["event"] == "weights are there"
    assert reason is None
    assert {path.name for path in root.iterdir() if not path.name.startswith(".")} == {PRESET}
    StableSR.from_preset(PRESET, torch.device("cpu"), torch.float32)
    count = len(hub.requests)
    assert said().line["event"] == "weights are there"
    assert len(hub.requests) == count


def test_a_long_download_says_how_far_it_is(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put_in_place(Settings(preset=PRESET, accept_licence=LICENCE))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    parts = [(line["stage"], line["name"], line["percent"]) for line in lines if "stage" in line]
    for name in hub.files:
        assert ("download", name, 100) in parts
    assert ("convert", "model.safetensors", 100) in parts


def _put(environment: dict[str, str], preset: Preset) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        replace_preset(preset, patch)
        put_in_place(Settings())


def test_a_process_that_is_ended_leaves_nothing_half_written_and_the_next_resumes(
    root: Path, said: Any, hub: Hub, preset: Preset
) -> None:
    first, second = hub.files
    waits, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        if hub.requests[-1].path.endswith(second) and not go_on.is_set():
            waits.set()
            go_on.wait(30)

    hub.before = stall
    environment = {
        "HF_ENDPOINT": hub.url,
        "STABLESR_ACCEPT_LICENCE": LICENCE,
        "STABLESR_PRESET": PRESET,
        "STABLESR_WEIGHTS": str(root),
    }
    process = CONTEXT.Process(target=_put, args=(environment, preset))
    process.start()
    assert waits.wait(60)
    process.terminate()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    assert not (root / PRESET).exists()
    go_on.set()

    assert said(accept_licence=LICENCE).line["event"] == "weights are there"
    assert (root / PRESET / "config.json").exists()
    assert len(hub.starts(first)) == 1

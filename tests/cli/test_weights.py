"""`stablesr weights` as a person types it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from models import presets
from models.checkpoints.folder import load_folder
from models.presets import PRESETS
from tests.models.hub import Hub, small_preset
from tests.models.released import released, write_files

runner = CliRunner()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_files(tmp_path_factory.mktemp("files"), *released())


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def hub(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with small files, which are those of stablesr-512 here."""
    contents = {path.name: path.read_bytes() for path in files}
    catalogue = MappingProxyType({**PRESETS, "stablesr-512": small_preset(contents)})
    monkeypatch.setattr(presets, "PRESETS", catalogue)
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
    assert "tiny │ yes │ 24.6 MB │ float16" in output
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

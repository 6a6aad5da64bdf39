"""Released files to a folder of our own: what is written, and what is refused by name."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import convert as converting
from models.checkpoints.convert import Conversion, convert
from models.checkpoints.files import INDEX, FileSum, WeightsProgress
from models.checkpoints.folder import describe, load_folder, verify
from models.checkpoints.sources import Sources
from models.checkpoints.writing import Form
from models.errors import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointUnreadable,
    DiskFull,
    WeightsExist,
    WeightsNotFound,
)
from models.presets import PRESETS, get_preset
from tests.models.released import SMALL, Tensors, ours, released, save, to_released, write_files
from tests.parity import Golden, compare, draw_weight

CPU = torch.device("cpu")
PRESET = get_preset("stablesr-512")
FP32 = Form("float32")
GOLDEN = Path(__file__).parents[2] / "golden"


def converted(
    folder: Path, diffusion: Tensors, autoencoder: Tensors, form: Form | None = None
) -> Conversion:
    files = write_files(folder, diffusion, autoencoder)
    return convert(PRESET, Sources(*files), folder / "out", form)


def test_every_tensor_of_a_lightning_pair_arrives_where_it_belongs(tmp_path: Path) -> None:
    done = converted(tmp_path, *released(), FP32)
    networks = load_folder(tmp_path / "out", CPU, torch.float32)
    wanted = ours()
    for name, tensor in networks.state_dict().items():
        if name != "context":
            assert torch.equal(tensor, wanted[name]), name
    assert networks.config == replace(SMALL, text=None)
    assert networks.first_stage is None
    assert done.record.shared_encoder
    assert done.omissions == {
        "tables of the noise schedule": 12,
        "the loss that the autoencoder was trained with": 2,
    }
    assert any("ModelCheckpoint" in name for name in done.foreign)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and in `out` what becomes of them unless asked otherwise; to be read only."""
    folder = tmp_path_factory.mktemp("whole")
    converted(folder, *released())
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return Path(shutil.copytree(whole / "out", tmp_path / "out"))


def test_half_precision_is_what_is_written_unless_asked_otherwise(whole: Path) -> None:
    tensors = load_file(whole / "out" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    name = "unet.mid_block.resnets.0.modulation.gamma.weight"
    assert torch.equal(tensors[name], ours()[name].half())


def test_what_was_converted_is_on_record(whole: Path) -> None:
    _, record = describe(whole / "out")
    assert record is not None
    assert (record.preset, record.dtype, record.float32) == ("stablesr-512", "float16", ())
    assert record.licence.startswith("S-Lab")
    content = (whole / "stablesr_000117.ckpt").read_bytes()
    assert record.sources[0] == FileSum(
        "stablesr_000117.ckpt", len(content), hashlib.sha256(content).hexdigest()
    )
    assert record.sources[1].name == "vqgan_cfw_00011.ckpt"
    written = (whole / "out" / "model.safetensors").read_bytes()
    assert record.files[0].sha256 == hashlib.sha256(written).hexdigest()


def test_the_same_files_give_the_same_folder(whole: Path, tmp_path: Path) -> None:
    converted(tmp_path, *released())
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["config.json", "model.safetensors"]
    for name in written:
        assert (tmp_path / "out" / name).read_bytes() == (whole / "out" / name).read_bytes()


def test_the_text_tower_is_kept_when_asked_and_its_unused_end_never(tmp_path: Path) -> None:
    converted(tmp_path, *released(), Form("float32", text=True))
    networks = load_folder(tmp_path / "out", CPU, torch.float32)
    assert networks.config.text == SMALL.text
    assert networks.text is not None
    assert len(networks.text.blocks) == 2
    tokens = torch.zeros(1, 77, dtype=torch.long)
    tokens[0, :2] = torch.tensor([48, 49])
    torch.testing.assert_close(networks.text(tokens), networks.context.detach())


def test_unequal_vae_encoders_are_both_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diffusion, autoencoder = released()
    diffusion["first_stage_model.encoder.mid.block_1.conv1.bias"] += 1
    with caplog.at_level(logging.WARNING):
        done = converted(tmp_path, diffusion, autoencoder, FP32)
    assert not done.record.shared_encoder
    assert "differ in 1 tensors (such as encoder.mid_block.resnets.0.conv1.bias)" in caplog.text
    networks = load_folder(tmp_path / "out", CPU, torch.float32)
    tensors, name = networks.state_dict(), "encoder.mid_block.resnets.0.conv1.bias"
    assert torch.equal(tensors[f"first_stage.{name}"], tensors[f"autoencoder.{name}"] + 1)
    kept = {name.split(".")[1] for name in tensors if name.startswith("first_stage.")}
    assert kept == {"encoder", "quant_conv"}


def test_a_folder_with_the_unused_decoder_loads_without_it(tmp_path: Path) -> None:
    """As conversions of unequal encoders wrote them once."""
    diffusion, autoencoder = released()
    diffusion["first_stage_model.quant_conv.bias"] += 1
    converted(tmp_path, diffusion, autoencoder, FP32)
    path = tmp_path / "out" / "model.safetensors"
    now = load_folder(tmp_path / "out", CPU, torch.float32).state_dict()
    whole = {n: t for n, t in ours().items() if n.startswith("first_stage.")} | load_file(path)
    assert len(whole) > len(now)
    save_file(whole, path)
    then = load_folder(tmp_path / "out", CPU, torch.float32).state_dict()
    assert then.keys() == now.keys()
    assert all(torch.equal(then[name], now[name]) for name in now)


def test_a_difference_in_the_quant_conv_counts_too(tmp_path: Path) -> None:
    diffusion, autoencoder = released()
    autoencoder["quant_conv.bias"] += 1
    assert not converted(tmp_path, diffusion, autoencoder).record.shared_encoder


def test_several_files_are_written_with_an_index_and_loaded(tmp_path: Path) -> None:
    converted(tmp_path, *released(), Form("float32", shard_bytes=1_000_000))
    folder = tmp_path / "out"
    index = json.loads((folder / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 3
    stored = [load_file(folder / name) for name in files]
    assert all(sum(t.nbytes for t in tensors.values()) <= 1_000_000 for tensors in stored)
    total = sum(t.nbytes for tensors in stored for t in tensors.values())
    assert index["metadata"]["total_size"] == total
    networks = load_folder(folder, CPU, torch.float32)
    assert torch.equal(networks.state_dict()["unet.conv_in.weight"], ours()["unet.conv_in.weight"])
    verify(folder)

    (folder / files[1]).unlink()
    with pytest.raises(WeightsNotFound, match=rf"{files[1]} is missing"):
        load_folder(folder, CPU, torch.float32)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    converted(tmp_path, *released(), Form(shard_bytes=2_000_000))
    index = {"weight_map": {"context": "../stablesr_000117.ckpt"}}
    (tmp_path / "out" / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointUnreadable, match="which is no file beside it"):
        load_folder(tmp_path / "out", CPU, torch.float32)


def test_what_half_precision_cannot_hold_is_kept_in_single(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diffusion, autoencoder = released()
    name = "model.diffusion_model.time_embed.0.weight"
    diffusion[name][3, 5] = -7e4
    with caplog.at_level(logging.WARNING):
        done = converted(tmp_path, diffusion, autoencoder)
    mapped = "unet.time_embedding.linear_1.weight"
    assert done.record.float32 == (mapped,)
    assert f"1 tensors have values beyond float16 and are kept in float32: {mapped}" in caplog.text
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors[mapped].dtype == torch.float32
    assert torch.equal(tensors[mapped], diffusion[name])
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    assert verify(tmp_path / "out").dtypes["float32"] == 1
    load_folder(tmp_path / "out", CPU, torch.bfloat16)
    with pytest.raises(CheckpointMismatch, match=r"linear_1\.weight .* float16 cannot hold"):
        load_folder(tmp_path / "out", CPU, torch.float16)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    diffusion, autoencoder = released()
    autoencoder["decoder.conv_in.bias"][0] = float("nan")
    with pytest.raises(CheckpointMismatch, match=r"autoencoder\.decoder\.conv_in\.bias has values"):
        converted(tmp_path, diffusion, autoencoder)
    assert not (tmp_path / "out").exists()


Change = Callable[[Tensors, Tensors], object]

_CONV = "model.diffusion_model.input_blocks.1.0.out_layers.3.weight"

WRONG: dict[str, tuple[Change, str]] = {
    "missing in the unet": (
        lambda d, a: d.pop("model.diffusion_model.out.0.bias"),
        r"stablesr_000117\.ckpt does not fit .*: missing model\.diffusion_model\.out\.0\.bias\.",
    ),
    "missing, and sizes are read from it": (
        lambda d, a: d.pop("model.diffusion_model.out.2.weight"),
        r"missing model\.diffusion_model\.out\.2\.weight",
    ),
    "missing in the encoder": (
        lambda d, a: d.pop("structcond_stage_model.middle_block.1.qkv.weight"),
        r"missing structcond_stage_model\.middle_block\.1\.qkv\.weight",
    ),
    "missing in the autoencoder": (
        lambda d, a: a.pop("quant_conv.bias"),
        r"vqgan_cfw_00011\.ckpt does not fit .*: missing quant_conv\.bias",
    ),
    "left over": (
        lambda d, a: d.update({"lora.down.weight": torch.ones(2)}),
        r"left over lora\.down\.weight",
    ),
    "left over, of a name that only begins as one that is dropped": (
        lambda d, a: a.update({"lossy.weight": torch.ones(2)}),
        r"left over lossy\.weight",
    ),
    "of the wrong shape": (
        lambda d, a: d.update({"structcond_stage_model.time_embed.0.bias": torch.ones(9)}),
        r"time_embed\.0\.bias has shape \(9,\) instead of \(128,\)",
    ),
    "of too few dimensions": (
        lambda d, a: d.update({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(9)}),
        r"input_blocks\.0\.0\.weight has shape \(9,\): a dimension is missing",
    ),
    "of no size that networks can have": (
        lambda d, a: d.update({_CONV: torch.ones(9, 9, 3, 3)}),
        r"no networks have the sizes of these tensors",
    ),
    "without a text tower": (
        lambda d, a: [d.pop(n) for n in list(d) if n.startswith("cond_stage_model")],
        r"comes without a text tower",
    ),
    "no decimals": (
        lambda d, a: a.update({"quant_conv.bias": torch.ones(8, dtype=torch.long)}),
        r"quant_conv\.bias holds torch\.int64",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_tensor_that_is_wrong_is_named_and_nothing_is_written(wrong: str, tmp_path: Path) -> None:
    change, said = WRONG[wrong]
    diffusion, autoencoder = released()
    change(diffusion, autoencoder)
    with pytest.raises(CheckpointMismatch, match=said):
        converted(tmp_path, diffusion, autoencoder)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".ckpt", ".ckpt"]


def test_moving_averages_are_left_out(tmp_path: Path) -> None:
    diffusion, autoencoder = released()
    diffusion |= {"model_ema.decay": torch.ones(()), "model_ema.diffusion_modelout": torch.ones(4)}
    done = converted(tmp_path, diffusion, autoencoder)
    assert done.omissions["moving averages of the weights"] == 2


def test_swapped_files_are_told_apart(tmp_path: Path) -> None:
    diffusion, autoencoder = write_files(tmp_path, *released())
    with pytest.raises(CheckpointMismatch, match=r"swapped: .*117\.ckpt is a StableSR diffusion"):
        convert(PRESET, Sources(autoencoder, diffusion), tmp_path / "out")
    with pytest.raises(CheckpointMismatch, match="given as the diffusion file and is the auto"):
        convert(PRESET, Sources(autoencoder, autoencoder), tmp_path / "out")
    with pytest.raises(CheckpointMismatch, match="given as the autoencoder file and is a StableSR"):
        convert(PRESET, Sources(diffusion, diffusion), tmp_path / "out")


def test_files_of_another_kind_are_told_for_what_they_are(tmp_path: Path) -> None:
    diffusion, autoencoder = released()
    plain = {n: t for n, t in autoencoder.items() if "fusion" not in n}
    base = {n: t for n, t in diffusion.items() if "spade" not in n and "structcond" not in n}
    files = write_files(tmp_path, diffusion, autoencoder)
    with pytest.raises(CheckpointMismatch, match="an autoencoder without the fusion layers"):
        convert(PRESET, Sources(files[0], save(tmp_path / "v.ckpt", plain)), tmp_path / "out")
    with pytest.raises(CheckpointMismatch, match="without StableSR's encoder and modulation"):
        convert(PRESET, Sources(save(tmp_path / "b.ckpt", base), files[1]), tmp_path / "out")
    other = save(tmp_path / "o.ckpt", {"conv1.weight": torch.ones(2)})
    with pytest.raises(CheckpointMismatch, match=r"no part of StableSR .* conv1\.weight"):
        convert(PRESET, Sources(other, files[1]), tmp_path / "out")


def test_a_file_that_belongs_to_another_preset_is_refused(tmp_path: Path) -> None:
    paths = write_files(tmp_path, *released())
    release = PRESETS["stablesr-768v"].release
    assert release is not None
    assert release.diffusion.sha256 is not None
    sums = {paths[0]: FileSum(paths[0].name, 1, release.diffusion.sha256)}
    with pytest.raises(CheckpointMismatch, match=r"belongs to stablesr-768v, by its sha256"):
        convert(PRESET, Sources(*paths), tmp_path / "out", sums=sums)
    convert(PRESETS["stablesr-768v"], Sources(*paths), tmp_path / "out", sums=sums)
    assert describe(tmp_path / "out")[0].prediction == "v_prediction"


def test_a_folder_is_replaced_only_when_asked_and_only_by_a_whole_one(
    whole: Path, out: Path
) -> None:
    files = whole / "stablesr_000117.ckpt", whole / "vqgan_cfw_00011.ckpt"
    with pytest.raises(WeightsExist, match="is there already"):
        convert(PRESET, Sources(*files), out)

    def interrupt(now: WeightsProgress) -> None:
        if now.stage == "convert" and now.position > now.total / 2:
            raise KeyboardInterrupt

    again = partial(convert, PRESET, Sources(*files), out, FP32, replace_folder=True)
    with pytest.raises(KeyboardInterrupt):
        again(on_progress=interrupt)
    assert verify(out).dtypes.keys() == {"float16"}
    again()
    assert verify(out).dtypes.keys() == {"float32"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_disk_without_room_is_told_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_files(tmp_path, *released())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(DiskFull, match=r"0\.0 GB free"):
        convert(PRESET, Sources(*files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tiny_is_made_from_no_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="tiny comes with the package"):
        convert(PRESETS["tiny"], Sources(tmp_path, tmp_path), tmp_path / "out")


def test_progress_tells_every_stage_up_to_its_end(tmp_path: Path) -> None:
    seen: list[WeightsProgress] = []
    files = write_files(tmp_path, *released())
    convert(PRESET, Sources(*files), tmp_path / "out", on_progress=seen.append)
    ends = {(now.stage, now.name) for now in seen if now.position == now.total}
    assert ends == {
        ("check", files[0].name),
        ("check", files[1].name),
        ("convert", "model.safetensors"),
        ("check", "model.safetensors"),
    }


def test_verify_finds_what_changed_after_the_conversion(out: Path) -> None:
    file = out / "model.safetensors"
    assert verify(out).dtypes == {"float16": len(load_file(file))}
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointUnreadable, match="is not what was written"):
        verify(out)
    file.unlink()
    with pytest.raises(WeightsNotFound, match=r"model\.safetensors is missing"):
        verify(out)


@pytest.mark.parametrize("text", ["{", "{}", '{"unet": 3}', '{"weights": {"format": 99}}'])
def test_a_damaged_description_is_told(text: str, out: Path) -> None:
    (out / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json does not describe weights"):
        verify(out)


def test_weights_without_a_record_are_verified_by_their_tensors() -> None:
    seen = verify(Path(converting.__file__).parents[1] / "weights" / "tiny")
    assert seen.record is None
    assert seen.dtypes.keys() == {"float16"}


def drawn(golden: Golden, file: str) -> Tensors:
    """The tensors of a released file by the rule of the golden figures; tables are left zero."""
    return {
        name: draw_weight(golden.salt, name, shape) if "." in name else torch.zeros(shape)
        for name, shape in golden.inventory[file].items()
    }


@torch.inference_mode()
def test_converted_golden_files_give_the_golden_networks(tmp_path: Path) -> None:
    golden = Golden(GOLDEN)
    contents = drawn(golden, "state_dict"), drawn(golden, "cfw_state_dict")
    files = write_files(tmp_path, *contents)
    conversion = convert(
        PRESET,
        Sources(*files),
        tmp_path / "out",
        Form("float32", shard_bytes=20_000_000, text=True),
    )
    # Every tensor is drawn by its name, so the two encoders differ and both must be kept.
    assert not conversion.record.shared_encoder
    networks = load_folder(tmp_path / "out", torch.device("cpu"), torch.float32)
    diffusion, autoencoder = to_released(networks.state_dict(), networks.config)
    for name, tensor in {**diffusion, **autoencoder}.items():
        assert torch.equal(tensor, {**contents[0], **contents[1]}[name]), name

    # The first text is the empty one.
    assert golden.arrays["text_tokens"][0].tolist() == [49406, 49407] + 75 * [0]
    empty = compare("context", networks.context, golden.arrays["text_out"][:1])
    assert empty.ok, empty

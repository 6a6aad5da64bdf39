"""StableSR alone on a base: the form of webui_768v_139.safetensors, and every form of the base."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from models.checkpoints import sources
from models.checkpoints.convert import convert
from models.checkpoints.folder import describe, load_folder
from models.checkpoints.sources import Sources
from models.checkpoints.writing import Form
from models.errors import CheckpointError, CheckpointMismatch
from models.presets import get_preset
from tests.models.released import SMALL, Tensors, ours, released, save, write_files

PRESET = get_preset("stablesr-768v")
FP32 = Form("float32", text=True)
GOLDEN = Path(__file__).parents[2] / "golden"


def is_own(name: str) -> bool:
    return name.startswith("structcond_stage_model.") or ".spade." in name


def text_encoder() -> Tensors:
    """The text tower in the naming of transformers' CLIPTextModel, without its last block."""
    tensors: Tensors = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    names = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final": "final_layer_norm",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "out": "self_attn.out_proj",
        "fc": "mlp.fc1",
        "proj": "mlp.fc2",
    }
    for name, tensor in ours().items():
        short = name.removeprefix("text.")
        if short == name:
            continue
        start, leaf = "text_model.", ""
        if short not in names:
            short, _, leaf = short.rpartition(".")
            leaf = f".{leaf}"
        if short.startswith("blocks."):
            _, number, short = short.split(".", 2)
            start = f"text_model.encoder.layers.{number}."
        if short == "qkv":
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"{start}self_attn.{x}_proj{leaf}"] = part.clone()
        else:
            tensors[f"{start}{names[short]}{leaf}"] = tensor
    return tensors


# Any: diffusers' own models are not typed.
def diffusers_models() -> tuple[Any, Any]:
    """Diffusers' own models, so that the names are theirs, with our numbers."""
    config, tensors = SMALL, ours()
    kinds: tuple[Any, Any] = UNet2DConditionModel, AutoencoderKL
    down = [
        "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.unet.attention
    ]
    unet = kinds[0](
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        block_out_channels=config.unet.widths,
        layers_per_block=config.unet.layers,
        cross_attention_dim=config.unet.context_width,
        attention_head_dim=tuple(w // config.unet.head_channels for w in config.unet.widths),
        use_linear_projection=True,
    )
    autoencoder = kinds[1](
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.released_autoencoder.widths,
        layers_per_block=config.released_autoencoder.layers,
        latent_channels=4,
    )
    for model, prefix in ((unet, "unet."), (autoencoder, "first_stage.")):
        model.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and ".modulation." not in name
            }
        )
    return unet, autoencoder


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "stable-diffusion-2-1"
    unet, autoencoder = diffusers_models()
    unet.save_pretrained(folder / "unet")
    autoencoder.save_pretrained(folder / "vae")
    (folder / "text_encoder").mkdir()
    save_file(text_encoder(), folder / "text_encoder" / "model.safetensors")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.fixture
def base(whole_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of diffusers that a test may change."""
    monkeypatch.setattr(sources, "UNET_SIZES", SMALL.unet)
    monkeypatch.setattr(sources, "TEXT_SIZES", SMALL.text)
    shutil.copytree(whole_folder, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """StableSR alone, as a safetensors file, and the autoencoder's file."""
    diffusion, autoencoder = released()
    paths = write_files(tmp_path, diffusion, autoencoder)
    alone = tmp_path / "webui_768v_139.safetensors"
    save_file({name: t for name, t in diffusion.items() if is_own(name)}, alone)
    return alone, paths[1]


def assert_whole(folder: Path, tolerance: float = 0) -> None:
    networks = load_folder(folder, torch.device("cpu"), torch.float32)
    assert networks.config == replace(SMALL, prediction="v_prediction")
    wanted = ours()
    for name, tensor in networks.state_dict().items():
        if name != "context":
            torch.testing.assert_close(tensor, wanted[name], rtol=tolerance, atol=tolerance)


def test_the_names_taken_for_the_webui_file_give_its_published_size(tmp_path: Path) -> None:
    with gzip.open(GOLDEN / "keys_full.json.gz") as packed:
        inventory: dict[str, list[int]] = json.load(packed)["state_dict"]
    own = {name: shape for name, shape in inventory.items() if is_own(name)}
    assert PRESET.release is not None
    (published,) = PRESET.release.alternatives
    offset, header = 0, {"__metadata__": {"format": "pt"}}
    described: dict[str, object] = dict(header)
    for name in sorted(own):
        size = 4 * math.prod(own[name])
        described[name] = {
            "dtype": "F32",
            "shape": own[name],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    length = len(json.dumps(described, separators=(",", ":")))
    assert 8 + -(-length // 8) * 8 + offset == published.size


def test_it_is_converted_on_a_diffusers_folder(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    done = convert(PRESET, Sources(*files, base), tmp_path / "out", FP32)
    assert_whole(tmp_path / "out")
    assert done.record.shared_encoder
    assert [file.name for file in done.record.sources] == [
        "webui_768v_139.safetensors",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "vqgan_cfw_00011.ckpt",
    ]


def test_it_gives_what_the_whole_file_gives(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    convert(PRESET, Sources(*files, base), tmp_path / "a")
    whole = tmp_path / "stablesr_000117.ckpt"
    convert(PRESET, Sources(whole, files[1]), tmp_path / "b")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_converted_on_a_single_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    diffusion = {name: t for name, t in released()[0].items() if not is_own(name)}
    diffusion["model_ema.num_updates"] = torch.ones((), dtype=torch.int32)
    save_file(diffusion, tmp_path / "v2-1_768-ema-pruned.safetensors")
    single = tmp_path / "v2-1_768-ema-pruned.safetensors"
    done = convert(PRESET, Sources(*files, single), tmp_path / "out", FP32)
    assert_whole(tmp_path / "out")
    assert done.omissions["moving averages of the weights"] == 1


def test_a_prefix_before_all_its_names_is_cut_off(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    tensors = {f"stablesr.{name}": t for name, t in load_file(files[0]).items()}
    save_file(tensors, files[0])
    convert(PRESET, Sources(*files, base), tmp_path / "out", FP32)
    assert_whole(tmp_path / "out")


def test_a_tensor_of_it_that_does_not_fit_is_named(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    tensors = load_file(files[0])
    tensors["structcond_stage_model.extra"] = torch.ones(1)
    del tensors["structcond_stage_model.fea_tran.1.emb_layers.1.bias"]
    save_file(tensors, files[0])
    missing = r"missing structcond_stage_model\.fea_tran\.1\.emb_layers\.1\.bias"
    with pytest.raises(CheckpointMismatch, match=rf"webui.* {missing}; left over .*\.extra"):
        convert(PRESET, Sources(*files, base), tmp_path / "out")


def sharded(base: Path) -> None:
    unet, _ = diffusers_models()
    shutil.rmtree(base / "unet")
    unet.save_pretrained(base / "unet", max_shard_size="1MB")
    assert len(list((base / "unet").glob("*-of-*.safetensors"))) > 2


def halves(base: Path) -> None:
    unet, autoencoder = diffusers_models()
    for name, model in (("unet", unet), ("vae", autoencoder)):
        shutil.rmtree(base / name)
        model.half().save_pretrained(base / name, variant="fp16")
        assert (base / name / "diffusion_pytorch_model.fp16.safetensors").is_file()


def pickled(base: Path) -> None:
    for name in ("unet", "vae"):
        path = base / name / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()


def old_names(base: Path) -> None:
    """As diffusers wrote autoencoders before 0.15, and with projections as convolutions."""
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for name in list(tensors):
        for new, former in old.items():
            if f".attentions.0.{new}." in name:
                tensor = tensors.pop(name)
                shape = (*tensor.shape, 1, 1) if tensor.ndim == 2 else tensor.shape
                tensors[name.replace(new, former)] = tensor.reshape(shape)
    assert any(name.endswith("mid_block.attentions.0.proj_attn.bias") for name in tensors)
    save_file(tensors, path)


def without_text_model(base: Path) -> None:
    path = base / "text_encoder" / "model.safetensors"
    tensors = {name.removeprefix("text_model."): t for name, t in load_file(path).items()}
    save_file(tensors, path)


@pytest.mark.parametrize("form", [sharded, halves, pickled, old_names, without_text_model])
def test_every_form_of_a_diffusers_folder_is_read(
    form: Callable[[Path], None], files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    form(base)
    convert(PRESET, Sources(*files, base), tmp_path / "out", FP32)
    assert_whole(tmp_path / "out", 1e-3 if form is halves else 0)


def test_a_half_precision_base_shares_the_encoder_where_half_precision_is_written(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    halves(base)
    assert convert(PRESET, Sources(*files, base), tmp_path / "a").record.shared_encoder
    assert not convert(PRESET, Sources(*files, base), tmp_path / "b", FP32).record.shared_encoder


def no_tower(base: Path) -> None:
    shutil.rmtree(base / "text_encoder")


def another_prediction(base: Path) -> None:
    (base / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')


def no_vae(base: Path) -> None:
    (base / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def less(base: Path) -> None:
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["mid_block.resnets.1.conv2.bias"]
    save_file(tensors, path)


def another_tower(base: Path) -> None:
    path = base / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["text_model.encoder.layers.0.self_attn.k_proj.bias"]
    save_file(tensors, path)


def no_diffusers(base: Path) -> None:
    shutil.rmtree(base / "unet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_tower, "comes without a text tower"),
        (another_prediction, r"predicts epsilon, and this preset needs one that predicts v_pred"),
        (no_vae, r"vae holds no weights"),
        (less, r"unet.* does not fit .*: missing mid_block\.resnets\.1\.conv2\.bias"),
        (another_tower, r"text_encoder.* missing encoder\.layers\.0\.self_attn\.k_proj\.bias"),
        (no_diffusers, r"is no folder of diffusers"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(
    change: Callable[[Path], None],
    said: str,
    files: tuple[Path, Path],
    base: Path,
    tmp_path: Path,
) -> None:
    change(base)
    with pytest.raises(CheckpointError, match=said):
        convert(PRESET, Sources(*files, base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_is_asked_for_where_it_is_needed_and_only_there(
    files: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointMismatch, match=r"give Stable Diffusion 2\.1 as the base"):
        convert(PRESET, Sources(*files), tmp_path / "out")
    whole = tmp_path / "stablesr_000117.ckpt"
    with pytest.raises(CheckpointMismatch, match=r"is whole and takes no base"):
        convert(PRESET, Sources(whole, files[1], base), tmp_path / "out")
    with pytest.raises(CheckpointMismatch, match=r"was given as the base and is a StableSR"):
        convert(PRESET, Sources(*files, whole), tmp_path / "out")


def test_safetensors_files_of_the_whole_model_are_read_too(tmp_path: Path) -> None:
    diffusion, autoencoder = released()
    for name, tensors in (("d", diffusion), ("a", autoencoder)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    sources = Sources(tmp_path / "d.safetensors", tmp_path / "a.safetensors")
    convert(PRESET, sources, tmp_path / "out", FP32)
    assert_whole(tmp_path / "out")
    assert describe(tmp_path / "out")[0].context_tokens == 77


def test_a_checkpoint_of_a_single_file_may_be_a_lightning_one_too(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    diffusion = {name: t for name, t in released()[0].items() if not is_own(name)}
    single = save(tmp_path / "768-v-ema.ckpt", diffusion)
    convert(PRESET, Sources(*files, single), tmp_path / "out", FP32)
    assert_whole(tmp_path / "out")

"""Real-ESRGAN's networks out of ncnn's files, and what starts from them."""

from __future__ import annotations

import zipfile
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.compact import CompactAutoencoder, enlarge, haar, inverse_haar
from tests.models.narrow import COMPACT
from tests.training.ncnn_files import exported, small_compact, small_rrdb, write_model
from training.config import ModelFileUnreadable
from training.realesrgan import CompactNet, RRDBNet, load_ncnn, start_decoder, start_fusion


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("half", [True, False])
def test_a_network_read_from_ncnns_file_computes_what_the_exported_one_does(half: bool) -> None:
    source, target = small_rrdb(1), small_rrdb(2)
    load_ncnn(target, exported(convolutions(source), half=half))
    image = torch.rand(1, 3, 6, 7)
    result = target(image)
    assert result.shape == (1, 3, 24, 28)
    torch.testing.assert_close(result, source(image), rtol=0, atol=2e-3 if half else 0)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compact network in the packages is 64 wide and 32 deep; here it is 8 and 2."""
    monkeypatch.setattr(CompactNet, "__init__", partialmethod(CompactNet.__init__, 8, 2))


def wheel_of(path: Path, *files: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("other/__init__.py", "")
        for file in files:
            wheel.write(file, f"other/models/{file.name}")
    return path


@pytest.mark.parametrize("in_wheel", [True, False], ids=["wheel", "folder"])
def test_the_compact_network_with_its_slopes_comes_from_a_folder_and_from_a_wheel(
    in_wheel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_compact(1)
    place = write_model(tmp_path / "models", "realesrgan-x4fast", list(source.layers))
    if in_wheel:
        place = wheel_of(tmp_path / "other-1.0-py3-none-any.whl", *place.iterdir())
    shrink(monkeypatch)
    network = CompactNet.from_model(place)
    image = torch.rand(1, 3, 6, 7)
    assert network(image).shape == (1, 3, 24, 28)
    assert torch.equal(network(image), source(image))
    assert not any(p.requires_grad for p in network.parameters())


def test_a_model_that_does_not_exist_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    with pytest.raises(ModelFileUnreadable, match=r"none holds no model x4 of ncnn: .*No such"):
        CompactNet.from_model(tmp_path / "none", "x4")
    with pytest.raises(ModelFileUnreadable, match=r"holds no model x4 of ncnn: .*x4\.bin"):
        CompactNet.from_model(tmp_path, "x4")
    (tmp_path / "x4.zip").write_bytes(b"no wheel")
    with pytest.raises(ModelFileUnreadable, match=r"x4\.zip holds no model x4 of ncnn"):
        CompactNet.from_model(tmp_path / "x4.zip", "x4")
    with pytest.raises(ModelFileUnreadable, match=r"other\.whl holds no model x4\.bin"):
        CompactNet.from_model(wheel_of(tmp_path / "other.whl"), "x4")


def test_a_file_that_is_another_networks_is_refused_with_the_place() -> None:
    network, data = small_rrdb(1), exported(convolutions(small_rrdb(1)), half=True)
    for change, message in (
        (data[:-4], "ends within layer 20 of 21"),
        (data + bytes(4), "data has"),
        (b"\1\0\0\0" + data[4:], "Layer 0 of 21 has the tag '01000000'"),
    ):
        with pytest.raises(ModelFileUnreadable, match=message):
            load_ncnn(network, change)
    for sizes in ({"blocks": 2, "width": 5}, {"blocks": 1, "width": 6}):
        with pytest.raises(ModelFileUnreadable):
            load_ncnn(RRDBNet(**sizes, growth=3), data)
    with pytest.raises(ModelFileUnreadable, match="ends within layer 0 of 1"):
        load_ncnn(nn.PReLU(3), exported([nn.PReLU(3)])[:-1])


@torch.no_grad()
def test_a_decoder_starts_as_the_compact_network_without_its_last_layer() -> None:
    torch.manual_seed(0)
    decoder = CompactAutoencoder(COMPACT, fusion=False).decoder
    network = small_compact(1)
    start_decoder(decoder, network)
    small = torch.rand(1, 3, 4, 6) * 2 - 1
    latent = torch.cat([haar(small), torch.randn(1, 4, 2, 3)], dim=1)
    # Nothing is added yet to the image that the latent holds.
    torch.testing.assert_close(decoder(latent, None, None), enlarge(small))
    # What the head will be made of is what the network's last layer reads.
    features: list[Tensor] = []
    decoder.head.conv1.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    decoder(latent, None, None)
    torch.testing.assert_close(features[0], network.layers[:-1](small * 0.5 + 0.5))


@torch.no_grad()
def test_a_fusion_starts_as_the_compact_network_of_what_was_encoded() -> None:
    torch.manual_seed(0)
    autoencoder, network = CompactAutoencoder(COMPACT), small_compact(1)
    fusion = autoencoder.decoder.fusion
    assert fusion is not None
    start_fusion(fusion, network)
    encoded = autoencoder.encode(torch.rand(1, 3, 16, 24) * 2 - 1)
    image = autoencoder.decode(encoded.moments, encoded.features)
    small = inverse_haar(encoded.moments)
    detail = network(small * 0.5 + 0.5) - F.interpolate(small * 0.5 + 0.5, scale_factor=4.0)
    expected = F.interpolate(small, scale_factor=4.0, mode="bicubic") + 2 * detail
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize(("width", "count"), [(8, 3), (16, 2)])
def test_a_decoder_of_other_sizes_than_the_networks_is_refused_with_both(
    width: int, count: int
) -> None:
    decoder = CompactAutoencoder(COMPACT).decoder
    message = rf"6 layers of 8 .*has {2 * count + 2} of {width}"
    with pytest.raises(ModelFileUnreadable, match=message):
        start_decoder(decoder, small_compact(1, width=width, count=count))

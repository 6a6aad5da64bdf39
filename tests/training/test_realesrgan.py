"""Real-ESRGAN's networks out of ncnn's files, and what starts from them."""

from __future__ import annotations

import zipfile
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.networks.compact import CompactAutoencoder, enlarge, haar
from tests.models.narrow import COMPACT
from tests.training.ncnn_files import exported, small_compact, small_rrdb, write_model
from training.config import ModelFileUnreadable
from training.realesrgan import CompactNet, RRDBNet, assign, layers, read_model, start_decoder


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("half", [True, False])
def test_a_network_read_from_ncnns_files_computes_what_the_exported_one_does(half: bool) -> None:
    source, target = small_rrdb(1), small_rrdb(2)
    assign(convolutions(target), layers(*exported(convolutions(source), half=half)))
    image = torch.rand(1, 3, 6, 7)
    result = target(image)
    assert result.shape == (1, 3, 24, 28)
    torch.testing.assert_close(result, source(image), rtol=0, atol=2e-3 if half else 0)


@pytest.mark.parametrize("packed", [True, False], ids=["wheel", "folder"])
def test_the_compact_network_with_its_slopes_comes_from_a_folder_and_from_a_wheel(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_compact(1)
    place = write_model(tmp_path / "models", "realesrgan-x4fast", list(source.layers))
    if packed:
        place = tmp_path / "other-1.0-py3-none-any.whl"
        with zipfile.ZipFile(place, "w") as wheel:
            wheel.writestr("other/models/more.param", "7767517\n")
            for path in (tmp_path / "models").iterdir():
                wheel.write(path, f"other/models/{path.name}")
    # The one in the packages is 64 wide and 32 deep.
    monkeypatch.setattr(CompactNet, "__init__", partialmethod(CompactNet.__init__, 8, 2))
    found = CompactNet.from_model(place)
    image = torch.rand(1, 3, 6, 7)
    assert found(image).shape == (1, 3, 24, 28)
    assert torch.equal(found(image), source(image))
    assert not any(p.requires_grad for p in found.parameters())


def test_a_model_that_is_not_there_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnreadable, match=r"none holds no model x4 of ncnn: .*No such"):
        read_model(tmp_path / "none", "x4")
    with pytest.raises(ModelFileUnreadable, match=r"holds no model x4 of ncnn: .*x4\.param"):
        read_model(tmp_path, "x4")
    (tmp_path / "x4.zip").write_bytes(b"no wheel")
    with pytest.raises(ModelFileUnreadable, match=r"x4\.zip holds no model x4 of ncnn"):
        read_model(tmp_path / "x4.zip", "x4")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    with pytest.raises(ModelFileUnreadable, match=r"other\.whl holds no model x4\.param"):
        read_model(tmp_path / "other.whl", "x4")
    with zipfile.ZipFile(tmp_path / "half.whl", "w") as wheel:
        wheel.writestr("half/x4.param", "7767517\n")
    with pytest.raises(ModelFileUnreadable, match=r"half\.whl holds no model x4 of ncnn"):
        read_model(tmp_path / "half.whl", "x4")


def test_files_that_are_no_such_network_are_refused_with_the_place() -> None:
    source = convolutions(small_rrdb(1))
    param, data = exported(source, half=True)
    with pytest.raises(ModelFileUnreadable, match="begins with 'hello'"):
        layers("hello\n", data)
    with pytest.raises(ModelFileUnreadable, match="ends within Conv_20"):
        layers(param, data[:-4])
    with pytest.raises(ModelFileUnreadable, match="its data has"):
        layers(param, data + bytes(4))
    with pytest.raises(ModelFileUnreadable, match="Conv_0 have the tag 0x1"):
        layers(param, b"\1\0\0\0" + data[4:])
    with pytest.raises(ModelFileUnreadable, match="Conv_0 is of a kind that is not read"):
        layers(param.replace("5=1", "5=0", 1), data)
    found = layers(param, data)
    with pytest.raises(ModelFileUnreadable, match="has 21 layers, but this network has 36"):
        assign(convolutions(RRDBNet(blocks=2, width=5, growth=3)), found)
    with pytest.raises(ModelFileUnreadable, match=r"Conv_0 has the shape \(5, 3, 3, 3\)"):
        assign(convolutions(RRDBNet(blocks=1, width=6, growth=3)), found)


def test_data_that_ends_within_slopes_is_refused_with_their_name() -> None:
    param, data = exported([nn.PReLU(3)])
    with pytest.raises(ModelFileUnreadable, match="ends within PRelu_0"):
        layers(param, data[:-1])


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
    read: list[Tensor] = []
    decoder.head.conv1.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    decoder(latent, None, None)
    torch.testing.assert_close(read[0], network.layers[:-1](small * 0.5 + 0.5))


@pytest.mark.parametrize(("width", "count"), [(8, 3), (16, 2)])
def test_a_decoder_of_other_sizes_than_the_networks_is_refused_with_both(
    width: int, count: int
) -> None:
    decoder = CompactAutoencoder(COMPACT).decoder
    said = rf"6 layers of 8 .*has {2 * count + 2} of {width}"
    with pytest.raises(ModelFileUnreadable, match=said):
        start_decoder(decoder, small_compact(1, width=width, count=count))

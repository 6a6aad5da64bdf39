"""Scores that networks give: LPIPS, CLIP-IQA, MUSIQ and FID, through pyiqa where it is installed;
and a distance over VGG-16, from a file, for machines without it.

pyiqa fetches each network's weights on first use. It is in no extra of this package: its licence
(PolyForm Noncommercial) is for whoever installs it to accept. A score that cannot be had is never
dropped in silence: `load` says why.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evaluation.pictures import Pixels, tensor_of
from training.perceptual import vgg_distance

__all__ = ["LEARNED", "Learned", "add_vgg", "load"]

log = logging.getLogger(__name__)

LEARNED = ("lpips", "clipiqa", "musiq", "fid")

_WITH_ORIGINAL = frozenset({"lpips", "vgg"})
# Of VGG-16, those that tell methods apart as the eye does; the last one sees objects.
_BLOCKS = 4
_OF_FOLDERS = frozenset({"fid"})


@dataclass
class Learned:
    """The networks that could be loaded, and why the others could not."""

    networks: dict[str, Callable[..., Any]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def scores(self, picture: Pixels, original: Pixels) -> dict[str, float]:
        """Those of one picture, by name."""
        images = [tensor_of(x).to(self.device) for x in (picture, original)]
        found: dict[str, float] = {}
        for name, network in list(self.networks.items()):
            if name not in _OF_FOLDERS:
                given = images if name in _WITH_ORIGINAL else images[:1]
                self._keep(found, name, network, given)
        return found

    def folder_scores(self, results: Path, originals: Path) -> dict[str, float]:
        """Those of a whole folder of results against the originals, by name."""
        found: dict[str, float] = {}
        for name, network in list(self.networks.items()):
            if name in _OF_FOLDERS:
                self._keep(found, name, network, [str(results), str(originals)])
        return found

    def _keep(
        self, found: dict[str, float], name: str, network: Callable[..., Any], given: Sequence[Any]
    ) -> None:
        try:
            with torch.inference_mode():
                found[name] = float(network(*given))
        # Some fetch weights only when they first run, and fail in as many ways as in `load`.
        except Exception as error:
            del self.networks[name]
            self.unavailable[name] = _reason(error)
            log.warning("%s is not measured: %s", name, self.unavailable[name])


def load(names: Sequence[str] = LEARNED, device: torch.device | str = "cpu") -> Learned:
    """Loads the networks of these scores.

    Args:
        names: of LEARNED.
        device: where they compute.
    """
    loaded = Learned(device=torch.device(device))
    try:
        pyiqa = importlib.import_module("pyiqa") if names else None
    # What it imports can be broken in its own ways: a torchvision made for another torch raises
    # RuntimeError, a missing library OSError.
    except Exception as error:
        hint = "" if not isinstance(error, ImportError) else "; `pip install pyiqa` brings it"
        loaded.unavailable = dict.fromkeys(
            names, f"pyiqa cannot be imported ({_reason(error)}){hint}"
        )
        return loaded
    for name in names:
        try:
            assert pyiqa is not None
            loaded.networks[name] = pyiqa.create_metric(name, device=loaded.device)
        # Fetching weights raises what the hub, the HTTP library or the disk raises.
        except Exception as error:
            loaded.unavailable[name] = _reason(error)
            log.warning("%s is not measured: %s", name, loaded.unavailable[name])
    return loaded


def add_vgg(loaded: Learned, network: Path) -> None:
    """A perceptual distance of features that all count the same. It is not LPIPS, whose weights of
    features belong to another VGG-16.

    Args:
        loaded: takes it, under the name `vgg`.
        network: as of `training.perceptual.vgg_distance`.

    Raises:
        InvalidRun: the file holds no VGG-16.
    """
    distance = vgg_distance(network, None, loaded.device, _BLOCKS)
    loaded.networks["vgg"] = lambda ours, theirs: distance(2 * ours - 1, 2 * theirs - 1)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

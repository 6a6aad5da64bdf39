"""Scores that networks give: LPIPS, CLIP-IQA, MUSIQ and FID, through pyiqa where it is installed;
and a distance over VGG-16, from a file, for machines without it.

pyiqa fetches each network's weights on first use. It is in no extra of this package: its licence
(PolyForm Noncommercial) is the user's to accept. A score that cannot be had is never dropped in
silence: `load` says why.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evaluation.images import Pixels, tensor_of
from training.perceptual import feature_distance, vgg_features

log = logging.getLogger(__name__)

LEARNED_SCORES = ("lpips", "clipiqa", "musiq", "fid")

_WITH_ORIGINAL = frozenset({"lpips", "vgg"})
# Of VGG-16, those that tell methods apart as the eye does; the last one sees objects.
_BLOCKS = 4
_OF_FOLDERS = frozenset({"fid"})


@dataclass
class LearnedScores:
    """The networks that could be loaded, and why the others could not."""

    networks: dict[str, Callable[..., Any]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def scores(self, image: Pixels, original: Pixels) -> dict[str, float]:
        """Those of one image, by name."""
        images = [tensor_of(x).to(self.device) for x in (image, original)]
        names = self.networks.keys() - _OF_FOLDERS
        return self._scores({n: images if n in _WITH_ORIGINAL else images[:1] for n in names})

    def folder_scores(self, results: Path, originals: Path) -> dict[str, float]:
        """Those of a whole folder of results against the originals, by name."""
        names = self.networks.keys() & _OF_FOLDERS
        return self._scores({name: [str(results), str(originals)] for name in names})

    def _scores(self, arguments: Mapping[str, Sequence[Any]]) -> dict[str, float]:
        scores = {}
        for name, values in arguments.items():
            try:
                with torch.inference_mode():
                    scores[name] = float(self.networks[name](*values))
            # Some fetch weights only when they first run, and fail in as many ways as in `load`.
            except Exception as error:
                del self.networks[name]
                self.refuse(name, error)
        return scores

    def refuse(self, name: str, error: Exception) -> None:
        """Keeps why a score is missing."""
        self.unavailable[name] = _reason(error)
        log.warning("%s is not measured: %s", name, self.unavailable[name])


def load(
    names: Sequence[str] = LEARNED_SCORES, device: torch.device | str = "cpu"
) -> LearnedScores:
    """Loads the networks of these of LEARNED_SCORES; `device` is where they compute."""
    result = LearnedScores(device=torch.device(device))
    if not names:
        return result
    try:
        pyiqa = importlib.import_module("pyiqa")
    # What it imports can be broken in its own ways: a torchvision made for another torch raises
    # RuntimeError, a missing library OSError.
    except Exception as error:
        hint = "; `pip install pyiqa` brings it" if isinstance(error, ImportError) else ""
        reason = f"pyiqa cannot be imported ({_reason(error)}){hint}"
        result.unavailable = dict.fromkeys(names, reason)
        return result
    for name in names:
        try:
            result.networks[name] = pyiqa.create_metric(name, device=result.device)
        # Fetching weights raises what the hub, the HTTP library or the disk raises.
        except Exception as error:
            result.refuse(name, error)
    return result


def add_vgg(scores: LearnedScores, path: Path) -> None:
    """Adds `vgg`, a perceptual distance of features that all count the same. It is not LPIPS, whose
    weights of features belong to another VGG-16. Raises InvalidRun: the file holds no VGG-16."""
    features = vgg_features(path, scores.device, _BLOCKS)
    scores.networks["vgg"] = lambda *images: feature_distance(
        *(features(2 * x - 1) for x in images)
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

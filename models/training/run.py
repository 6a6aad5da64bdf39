"""Trains a small StableSR from photographs: `python -m models.training.run CONFIG PHOTOGRAPHS OUT`.

Four stages, each resumable and each starting from the folder that the one before it wrote:
autoencoder, prior, guidance (encoder and modulation, the prior frozen), wrapping (CFW).
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.folder import load_folder, save_folder
from models.networks.bundle import Networks
from models.training.autoencoder import autoencoder_loss, is_first_stage, latent_deviation
from models.training.color_path import open_color_path
from models.training.degradation import MILD, PAPER, degrade
from models.training.loop import Fit, LoopSettings
from models.training.photographs import PhotographCrops
from models.training.prior import (
    LatentPairs,
    Pairs,
    diffusion_loss,
    is_guidance,
    is_prior,
    open_modulation,
)
from models.training.sizes import TINY
from models.training.wrapping import SampledPairs, is_wrapping, wrapping_loss

__all__ = ["STAGES", "degraded_pairs", "main"]

STAGES = ("autoencoder", "prior", "guidance", "wrapping")
_SCALE = 4


def degraded_pairs(crops: PhotographCrops, batch: int, seed: int) -> Pairs:
    """Photographs and their degraded selves, upsampled back as the pipeline does.

    A third each is degraded as in the paper, mildly, and by bicubic reduction alone, so that
    clean inputs are not smoothed.
    """

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        high = crops.at(step, batch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        if step % 3 == 2:
            low = F.interpolate(high, scale_factor=1 / _SCALE, mode="bicubic", antialias=True)
            low = (low.clamp(0, 1) * 255).round() / 255
        else:
            settings = PAPER if step % 3 == 0 else MILD
            low = degrade(high, _SCALE, generator=generator, settings=settings)
        return high, F.interpolate(low, size=high.shape[2:], mode="bicubic").clamp(0, 1)

    return pairs


class Run:
    """One training run: its configuration, its photographs and its folder."""

    def __init__(self, config: dict[str, Any], photographs: Path, out: Path) -> None:
        self.config, self.photographs, self.out = config, photographs, out
        self.seed = int(config["seed"])

    def _start(self, stage: str) -> Networks:
        """The networks that the stage before this one wrote; fresh ones for the first."""
        torch.manual_seed(self.seed)
        at = STAGES.index(stage)
        if at == 0:
            return Networks(TINY)
        folder = self.out / STAGES[at - 1] / "weights"
        networks = load_folder(folder, torch.device("cpu"), torch.float32)
        return networks.train()

    def _finish(self, stage: str, networks: Networks) -> None:
        save_folder(networks, self.out / stage / "weights", torch.float32)

    def _crops(self, stage: str) -> PhotographCrops:
        settings = self.config[stage]
        return PhotographCrops.from_folder(
            self.photographs, settings["crop"], self.seed, candidates=settings["candidates"]
        )

    def _loop(self, stage: str) -> LoopSettings:
        return LoopSettings(**self.config[stage]["loop"])

    def autoencoder(self) -> None:
        networks = self._start("autoencoder")
        autoencoder = networks.autoencoder
        open_color_path(autoencoder)
        autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # undeclared
        crops, settings = self._crops("autoencoder"), self.config["autoencoder"]
        fit = Fit(autoencoder, is_first_stage, self._loop("autoencoder"), self.out / "autoencoder")
        fit.resume()

        def images(step: int) -> Tensor:
            return crops.at(step, settings["batch"])

        fit.run(autoencoder_loss(autoencoder, images, self.seed))
        deviation = latent_deviation(autoencoder, crops.at(0, 32))
        sizes = dataclasses.replace(TINY.autoencoder, scaling_factor=1 / deviation)
        networks.config = dataclasses.replace(TINY, autoencoder=sizes)
        self._finish("autoencoder", networks)

    def _latents(self, stage: str, networks: Networks) -> LatentPairs:
        """Latent pairs of the stage's crops, kept on disk: they are the same for a resumed run."""
        settings = self.config[stage]
        kept = self.out / "latents.pt"
        if not kept.exists():
            pairs = degraded_pairs(self._crops(stage), settings["pairs_batch"], self.seed)
            made = LatentPairs.encode(networks.autoencoder, pairs, settings["pairs_batches"])
            torch.save({"high": made.high, "low": made.low}, kept)
        return LatentPairs(**torch.load(kept, weights_only=True))

    def _diffusion(self, stage: str, networks: Networks, *, guided: bool) -> None:
        settings = self.config[stage]
        fit = Fit(
            networks,
            is_guidance if guided else is_prior,
            self._loop(stage),
            self.out / stage,
        )
        fit.resume()
        fit.run(
            diffusion_loss(
                networks.unet,
                networks.encoder if guided else None,
                networks.context,
                self._latents(stage, networks),
                batch=settings["batch"],
                seed=self.seed,
                prediction=networks.config.prediction,
            )
        )
        self._finish(stage, networks)

    def prior(self) -> None:
        networks = self._start("prior")
        open_modulation(networks.unet)
        with torch.no_grad():
            networks.context.normal_(0, 1)
        self._diffusion("prior", networks, guided=False)

    def guidance(self) -> None:
        self._diffusion("guidance", self._start("guidance"), guided=True)

    def wrapping(self) -> None:
        networks = self._start("wrapping")
        settings = self.config["wrapping"]
        kept = self.out / "sampled.pt"
        if not kept.exists():
            pairs = degraded_pairs(self._crops("wrapping"), settings["pairs_batch"], self.seed + 1)
            made = SampledPairs.sample(
                networks,
                pairs,
                batches=settings["pairs_batches"],
                steps=settings["sampling_steps"],
                seed=self.seed,
            )
            torch.save({"high": made.high, "low": made.low, "latent": made.latent}, kept)
        sampled = SampledPairs(**torch.load(kept, weights_only=True))
        fit = Fit(networks, is_wrapping, self._loop("wrapping"), self.out / "wrapping")
        fit.resume()
        fit.run(
            wrapping_loss(
                networks,
                sampled,
                batch=settings["batch"],
                crop=settings["crop_cells"],
                seed=self.seed,
            )
        )
        self._finish("wrapping", networks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="a TOML file such as configs/tiny.toml")
    parser.add_argument("photographs", type=Path, help="see models.training.photographs")
    parser.add_argument("out", type=Path, help="checkpoints, logs and weights go here")
    parser.add_argument("--stage", choices=STAGES, help="this stage only")
    arguments = parser.parse_args()
    config = tomllib.loads(arguments.config.read_text())
    run = Run(config, arguments.photographs, arguments.out)
    for stage in STAGES:
        if arguments.stage in (None, stage):
            getattr(run, stage)()


if __name__ == "__main__":
    main()

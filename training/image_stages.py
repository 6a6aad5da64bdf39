"""The stages whose networks make images: `vae`, `decoder`, `distill` and `cfw`.

`vae` learns from photographs and from the teacher's images to return an image, blurred where it was
blurred. `decoder` then starts from Real-ESRGAN's compact network, which brings sharp edges; its
last layer interleaves channels and leaves a lattice, so the head learns to end as it does.

The paper names fast sampling as what is missing. In `distill` the prior stays frozen; what guides
it learns that few steps end where another network, or the same one in many steps, ends. The decoder
learns along, because what it reads then is sampled and not encoded. `cfw` is the paper's last stage
(section 3.3).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from models.networks.compact import HAAR_CHANNELS, CompactAutoencoder, haar, quarter
from training.config import CfwSettings, DecoderSettings, DistillSettings
from training.objective import Batch, ImageObjective
from training.pairs import generator_of, upsample
from training.realesrgan import CompactNet
from training.shards import TEACHER, Shards, teacher_crops
from training.sources import sample_latent

Images = Callable[[int], tuple[Tensor, ...]]
"""Number of a batch -> (n, 3, H, W) in [0, 1], on the device, alone."""

_SCALING_BATCHES = 8
# Deviation of what is added to the unscaled latent before it is decoded.
_NOISE = 0.01
# Weight of the mean square of the free channels: keeps them near the others' size.
_FREE_PENALTY = 1e-4


class Vae(ImageObjective):
    """The compact autoencoder but its fusion layers."""

    _source: Images

    def draw(self, number: int) -> Batch:
        [image] = self._source(number)
        config = self.networks.config.autoencoder
        cells = [side // config.downscale for side in image.shape[2:]]
        shape = (len(image), config.latent_channels, *cells)
        noise = torch.randn(shape, generator=generator_of(self._seed, number)).to(image.device)
        return {"target": image * 2 - 1, "noise": _NOISE * noise}

    def forward(self, batch: Batch) -> Batch:
        autoencoder = self.networks.autoencoder
        latent = autoencoder.encode(batch["target"]).moments.float()
        out = autoencoder.decode(latent + batch["noise"])
        return {"image": out.float(), "free": latent[:, HAAR_CHANNELS:]}

    def more_terms(self, outputs: Batch) -> dict[str, Tensor]:
        return {"free": _FREE_PENALTY * outputs["free"].square().mean()}

    @torch.no_grad()
    def rescale(self) -> None:
        """Scales latents to a deviation of one, of images that do not change with the step."""
        networks, autoencoder = self.networks, self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        images = torch.cat([self.draw(number)["target"] for number in range(_SCALING_BATCHES)])
        deviation = autoencoder.encode(images).moments.std(dim=(0, 2, 3)).clamp(min=1e-3)
        scale = tuple(round(1 / float(d), 4) for d in deviation)
        autoencoder.config = dataclasses.replace(autoencoder.config, latent_scale=scale)
        networks.config = dataclasses.replace(networks.config, autoencoder=autoencoder.config)


class Decoder(ImageObjective):
    """The decoder's head; the decoder's layers are the compact network's, all but its last."""

    _source: Images
    _settings: DecoderSettings

    @cached_property
    def _network(self) -> CompactNet:
        """No part of what is trained and saved."""
        return CompactNet.from_model(self._settings.network).to(self._device)

    def draw(self, number: int) -> Batch:
        [image] = self._source(number)
        small = quarter(image).clamp(0, 1)
        with torch.no_grad():
            target = self._network(small) * 2 - 1
        latent = haar(small * 2 - 1)
        free = self.networks.config.autoencoder.latent_channels - HAAR_CHANNELS
        empty = latent.new_zeros((len(latent), free, *latent.shape[2:]))
        return {"latent": torch.cat([latent, empty], dim=1), "target": target}

    def forward(self, batch: Batch) -> Batch:
        return {"image": self.networks.autoencoder.decode(batch["latent"]).float()}


class Distillation(ImageObjective):
    """Guidance and decoder but its fusion layers, from the teacher's shards."""

    _source: Shards
    _settings: DistillSettings

    def draw(self, number: int) -> Batch:
        s, generator = self._settings, generator_of(self._seed, number)
        size, config = s.loop.batch, self.networks.config.autoencoder
        crops = teacher_crops(self._source, (TEACHER, "low"), size, s.crop, generator)
        steps = random.Random(number).choice(s.steps)
        cells = s.crop // config.downscale
        shape = (steps + 1, size, config.latent_channels, cells, cells)
        batch = {
            "low": upsample(crops["low"]) * 2 - 1,
            "target": crops[TEACHER] * 2 - 1,
            "noise": torch.randn(shape, generator=generator),
        }
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def forward(self, batch: Batch) -> Batch:
        autoencoder, noise = self.networks.autoencoder, batch["noise"]
        with torch.no_grad():
            lr = autoencoder.latent(autoencoder.encode(batch["low"]).moments)
        # The last of several steps is at t = 0 and changes next to nothing: what it reads has to
        # learn as well.
        latent = sample_latent(self.networks, lr, len(noise) - 1, iter(noise), learning=2)
        return {"image": autoencoder.decode(latent).float()}


class Cfw(ImageObjective):
    """Only the fusion layers learn, at w = 1, from `Sources.samples`; encoder and decoder stay the
    first stage's."""

    _source: Shards
    _settings: CfwSettings

    def draw(self, number: int) -> Batch:
        s, pixels = self._settings, self.networks.config.autoencoder.downscale
        units = {"latent": 1, "high": pixels, "low": pixels}
        generator = generator_of(self._seed, number)
        crops = self._source.crops(s.loop.batch, units, s.crop_cells, generator)
        high, low = crops["high"] * 2 - 1, crops["low"] * 2 - 1
        batch = {"target": high, "low": low, "latent": crops["latent"]}
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def forward(self, batch: Batch) -> Batch:
        autoencoder = self.networks.autoencoder
        with torch.no_grad():
            features = autoencoder.encode(batch["low"]).features
        fidelity = torch.ones((), device=self._device)
        return {"image": autoencoder.decode(batch["latent"], features, fidelity).float()}

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
from typing import cast

import torch
from torch import Tensor, nn

from models.networks.autoencoder import FusionLayer
from models.networks.compact import HAAR_CHANNELS, CompactAutoencoder, haar, quarter
from training.config import CfwSettings, DecoderSettings, DistillSettings, VaeSettings
from training.objective import Batch, Guidance, ImageObjective
from training.pairs import upsample
from training.realesrgan import CompactNet
from training.shards import TEACHER, Shards, crop_alike
from training.sources import sample_latent

Images = Callable[[int], Tensor]
"""Number of a batch -> (n, 3, H, W) in [0, 1], on the device."""

_SCALING_BATCHES = 8


def _is_slope(name: str) -> bool:
    """Whether the parameter is a slope of the compact decoder's activations.

    They stay as they are: on a processor their gradients take a fifth of a step's time, and there
    are few of them.
    """
    return name.endswith((".activation.weight", ".act.weight"))


class Vae(ImageObjective[Images, VaeSettings]):
    """The autoencoder but its fusion layers."""

    target = "image"

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("autoencoder.") and ".fusion." not in name and not _is_slope(name)

    def draw(self, number: int) -> Batch:
        image = self._source(number) * 2 - 1
        config = self.networks.config.autoencoder
        cells = [side // config.downscale for side in image.shape[2:]]
        shape = (len(image), config.latent_channels, *cells)
        noise = torch.randn(shape, generator=self.generator(number)).to(image.device)
        return {"image": image, "noise": self._settings.noise * noise}

    def forward(self, batch: Batch) -> Batch:
        autoencoder = self.networks.autoencoder
        latent = autoencoder.encode(batch["image"]).moments.float()
        out = autoencoder.decode(latent + batch["noise"])
        return {"image": out.float(), "free": latent[:, HAAR_CHANNELS:]}

    def more_terms(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """The pull of the free channels to zero."""
        return {"free": self._settings.free_penalty * outputs["free"].square().mean()}

    @torch.no_grad()
    def rescale(self) -> None:
        """Scales latents to a deviation of one, of images that do not change with the step."""
        networks, autoencoder = self.networks, self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        images = torch.cat([self.draw(number)["image"] for number in range(_SCALING_BATCHES)])
        deviation = autoencoder.encode(images).moments.std(dim=(0, 2, 3)).clamp(min=1e-3)
        scale = tuple(round(1 / float(d), 4) for d in deviation)
        autoencoder.config = dataclasses.replace(autoencoder.config, latent_scale=scale)
        networks.config = dataclasses.replace(networks.config, autoencoder=autoencoder.config)


class Decoder(ImageObjective[Images, DecoderSettings]):
    """The decoder's head; the decoder's layers are the compact network's, all but its last."""

    target = "target"

    @cached_property
    def _network(self) -> CompactNet:
        """No part of what is trained and saved."""
        return CompactNet.from_model(self._settings.network).to(self._device)

    @staticmethod
    def trainable(name: str) -> bool:
        return name.startswith("autoencoder.decoder.head.")

    def draw(self, number: int) -> Batch:
        small = quarter(self._source(number)).clamp(0, 1)
        with torch.no_grad():
            target = self._network(small) * 2 - 1
        latent = haar(small * 2 - 1)
        free = self.networks.config.autoencoder.latent_channels - HAAR_CHANNELS
        empty = latent.new_zeros((len(latent), free, *latent.shape[2:]))
        return {"latent": torch.cat([latent, empty], dim=1), "target": target}

    def forward(self, batch: Batch) -> Batch:
        return {"image": self.networks.autoencoder.decode(batch["latent"]).float()}


class Distillation(ImageObjective[Shards, DistillSettings]):
    """Guidance and decoder but its fusion layers, from the teacher's shards."""

    target = TEACHER

    @staticmethod
    def trainable(name: str) -> bool:
        decoder = name.startswith("autoencoder.decoder.") and Vae.trainable(name)
        return decoder or Guidance.trainable(name)

    def draw(self, number: int) -> Batch:
        s, generator = self._settings, self.generator(number)
        names = ("high", "low", TEACHER)
        high, low, teacher = crop_alike(self._source, names, s.loop.batch, s.crop, generator)
        steps = random.Random(number).choice(s.steps)
        config = self.networks.config.autoencoder
        cells = s.crop // config.downscale
        noise = torch.randn(
            (steps + 1, s.loop.batch, config.latent_channels, cells, cells), generator=generator
        )
        images = {"high": high, "low": upsample(low, 4), TEACHER: teacher}
        batch = {name: image * 2 - 1 for name, image in images.items()} | {"noise": noise}
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def forward(self, batch: Batch) -> Batch:
        autoencoder, noise = self.networks.autoencoder, batch["noise"]
        with torch.no_grad():
            lr = autoencoder.latent(autoencoder.encode(batch["low"]).moments)
        # The last of several steps is at t = 0 and changes next to nothing: what it reads has to
        # learn as well.
        latent = sample_latent(self.networks, lr, len(noise) - 1, iter(noise), learning=2)
        return {"image": autoencoder.decode(latent).float()}

    def more_terms(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        error = (outputs["image"] - batch["high"]).abs().mean()
        return {"photograph": self._settings.photograph * error}


class Cfw(ImageObjective[Shards, CfwSettings]):
    """Only the fusion layers learn, at w = 1, from `Sources.samples`; encoder and decoder stay the
    first stage's."""

    target = "high"

    @staticmethod
    def trainable(name: str) -> bool:
        return ".fusion." in name and not _is_slope(name)

    def draw(self, number: int) -> Batch:
        generator = self.generator(number)
        entries = self._source.pick(self._settings.loop.batch, generator)
        side, cell = self._settings.crop_cells, self.networks.config.autoencoder.downscale
        cells = entries[0]["latent"].shape[-1]
        corners = torch.randint(cells - side + 1, (len(entries), 2), generator=generator).tolist()
        batch = {}
        for name, unit in (("high", cell), ("low", cell), ("latent", 1)):
            parts = []
            for entry, (y, x) in zip(entries, corners, strict=True):
                rows, columns = (slice(unit * at, unit * (at + side)) for at in (y, x))
                parts.append(entry[name][:, rows, columns])
            batch[name] = torch.stack(parts).to(self._device)
            if name != "latent":
                batch[name] = batch[name].float() / 127.5 - 1
        return batch

    def forward(self, batch: Batch) -> Batch:
        autoencoder = self.networks.autoencoder
        with torch.no_grad():
            features = autoencoder.encode(batch["low"]).features
        fidelity = torch.ones((), device=self._device)
        return {"image": autoencoder.decode(batch["latent"], features, fidelity).float()}

    @property
    def last_layer(self) -> nn.Module:
        fusion = self.networks.autoencoder.decoder.fusion
        assert fusion is not None
        if isinstance(fusion, nn.ModuleDict):
            return cast("FusionLayer", fusion["half_size"]).leave.conv2
        return cast("nn.ModuleDict", fusion.layers[-1])["conv"]

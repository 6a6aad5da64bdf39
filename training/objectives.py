"""What each stage learns, as the trainer sees it.

`Denoising` is the diffusion's: the prior, and the guidance, which is the paper's fine-tuning
(sections 3.1 and 3.2). The other stages' networks make images.

`Vae` learns from photographs and from the teacher's images to return an image, blurred where it was
blurred. `Decoder` then starts from Real-ESRGAN's compact network, which brings sharp edges; its
last layer interleaves channels and leaves a lattice, so the head learns to end as it does.

The paper names fast sampling as what is missing. In `Distillation` the prior stays frozen; what
guides it learns that few steps end where another network, or the same one in many steps, ends. The
decoder learns along, because what it reads then is sampled and not encoded. `Cfw` is the paper's
last stage (section 3.3).
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoints.folder import save_folder
from models.networks.bundle import Networks
from models.networks.compact import HAAR_CHANNELS, CompactAutoencoder, haar, quarter
from models.schedulers import TRAINING_STEPS, alphas_cumprod
from training.config import CfwSettings, DecoderSettings, DistillSettings, StageName
from training.image_loss import ImageLoss
from training.pairs import SCALE, Batch, generator_of, upsample
from training.realesrgan import CompactNet
from training.shards import Shards
from training.sources import TEACHER, sample_latent

Source = Callable[[int], Batch]
"""Gives the batch of a number, on the device."""

_SCALING_BATCHES = 8
# Deviation of what is added to the unscaled latent before it is decoded.
_NOISE = 0.01
# Weight of the mean square of the free channels: keeps them near the others' size.
_FREE_PENALTY = 1e-4
_MODULATION = (".modulation.shared.", ".modulation.gamma.", ".modulation.beta.")
# Slopes of the compact decoder's activations stay as they are: on a processor their gradients take
# a fifth of a step's time, and there are few of them.
_SLOPES = (".activation.weight", ".act.weight")


def learns(stage: StageName, name: str) -> bool:
    """Whether the stage trains the parameter of the networks with this name."""
    guidance = name.startswith("encoder.") or ".modulation." in name
    fusion, slope = ".fusion." in name, name.endswith(_SLOPES)
    decoder = name.startswith("autoencoder.decoder.") and not fusion and not slope
    match stage:
        case "vae":
            return decoder or name.startswith("autoencoder.encoder.")
        case "prior":
            unet = name.startswith("unet.") and not any(part in name for part in _MODULATION)
            return unet or name == "context"
        case "encoder":
            return guidance
        case "decoder":
            return name.startswith("autoencoder.decoder.head.")
        case "distill":
            return decoder or guidance
        case "cfw":
            return fusion and not slope


class Objective(nn.Module, ABC):
    """Networks with what is computed of them in one stage.

    Some of their parameters learn, the others stay bit for bit as they are. `forward` is all that
    learns: the trainer wraps it for several processes. The seed is that of this process's data.
    """

    loss: ImageLoss | None = None
    """Compares the `image` that `forward` gives with the `target` of a batch."""

    def __init__(self, stage: StageName, networks: Networks, seed: int) -> None:
        super().__init__()
        self.stage, self.networks, self._seed = stage, networks, seed

    @abstractmethod
    def draw(self, number: int) -> Batch:
        """The batch of this number: it follows from seed and number alone, so that a resumed run
        sees what an uninterrupted one sees."""

    @abstractmethod
    def forward(self, batch: Batch) -> Batch:
        """What the networks make of a batch."""

    def export(self, folder: Path) -> None:
        """Writes the networks as they are."""
        save_folder(self.networks, folder, torch.float32)

    @abstractmethod
    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted scalars by name; their sum is what is minimised."""


class Denoising(Objective):
    """The prior, which is the UNet without guidance and the constant context; or the guidance.

    The UNet predicts epsilon or v, as the weights' configuration says.
    """

    def __init__(self, stage: StageName, networks: Networks, latents: Source, seed: int) -> None:
        super().__init__(stage, networks, seed)
        self._latents = latents
        self._alphas = torch.from_numpy(alphas_cumprod()).float()

    def draw(self, number: int) -> Batch:
        generator, batch = generator_of(self._seed, number), self._latents(number)
        high = batch["high"]
        n = len(high)
        # One draw from each of n equal stretches of the schedule: less noise in the loss.
        places = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        timestep = (places * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1)
        a = self._alphas[timestep].view(-1, 1, 1, 1).to(high.device)
        noise = torch.randn(high.shape, generator=generator).to(high.device)
        velocity = a.sqrt() * noise - (1 - a).sqrt() * high
        return {
            **batch,
            "noisy": a.sqrt() * high + (1 - a).sqrt() * noise,
            "timestep": timestep.to(high.device),
            "target": noise if self.networks.config.prediction == "epsilon" else velocity,
        }

    def forward(self, batch: Batch) -> Batch:
        networks, noisy, timestep = self.networks, batch["noisy"], batch["timestep"]
        context = networks.context.expand(len(noisy), -1, -1)
        if self.stage == "encoder":
            features = networks.encoder(batch["low"], timestep)
        else:
            config, (n, _, h, w) = networks.unet.config, noisy.shape
            levels = range(len(config.widths))
            features = [noisy.new_zeros(n, config.feature_width, h >> i, w >> i) for i in levels]
        return {"prediction": networks.unet(noisy, timestep, context, features)}

    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        """Mean squared error, arXiv 2006.11239, eq. 14, and its like for v."""
        return {"denoising": F.mse_loss(outputs["prediction"].float(), batch["target"])}


class ImageObjective(Objective):
    """One whose networks make images: `forward` gives `image`, (n, 3, H, W) in [-1, 1], and further
    terms. `draw` makes batches of the source; the settings are the stage's table."""

    def __init__(
        self,
        stage: StageName,
        networks: Networks,
        source: Any,
        settings: Any,
        loss: ImageLoss,
        seed: int,
    ) -> None:
        super().__init__(stage, networks, seed)
        self.loss: ImageLoss = loss
        self._source, self._settings = source, settings
        self._device = networks.context.device
        # Weight and bias by whose gradients the critic's weight is set: the last that learn, of the
        # finest level, after which the released fusion lists that of a quarter of the size.
        self._last = [
            parameter
            for name, parameter in networks.named_parameters()
            if learns(stage, name) and "quarter_size" not in name
        ][-2:]

    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        terms = self.loss.terms(outputs["image"], batch["target"], step)
        terms |= {name: term for name, term in outputs.items() if name != "image"}
        if self.loss.has_critic(step):
            rest = torch.stack(list(terms.values())).sum()
            terms["adversarial"] = self.loss.adversarial(outputs["image"], rest, self._last)
        return terms


class Vae(ImageObjective):
    """The compact autoencoder but its fusion layers."""

    _source: Source

    def draw(self, number: int) -> Batch:
        image = self._source(number)["high"]
        config = self.networks.config.autoencoder
        cells = [side // config.downscale for side in image.shape[2:]]
        shape = (len(image), config.latent_channels, *cells)
        noise = torch.randn(shape, generator=generator_of(self._seed, number)).to(image.device)
        return {"target": image * 2 - 1, "noise": _NOISE * noise}

    def forward(self, batch: Batch) -> Batch:
        autoencoder = self.networks.autoencoder
        latent = autoencoder.encode(batch["target"]).moments.float()
        out = autoencoder.decode(latent + batch["noise"])
        free = latent[:, HAAR_CHANNELS:]
        return {"image": out.float(), "free": _FREE_PENALTY * free.square().mean()}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Latents then have a deviation of one, of images that do not change with the step."""
        networks, autoencoder = self.networks, self.networks.autoencoder
        assert isinstance(autoencoder, CompactAutoencoder)  # the stage refuses others
        images = torch.cat([self.draw(number)["target"] for number in range(_SCALING_BATCHES)])
        deviation = autoencoder.encode(images).moments.std(dim=(0, 2, 3)).clamp(min=1e-3)
        scale = tuple(round(1 / float(d), 4) for d in deviation)
        autoencoder.config = dataclasses.replace(autoencoder.config, latent_scale=scale)
        networks.config = dataclasses.replace(networks.config, autoencoder=autoencoder.config)
        super().export(folder)


class Decoder(ImageObjective):
    """The decoder's head; the decoder's layers are the compact network's, all but its last."""

    _source: Source
    _settings: DecoderSettings

    @cached_property
    def _network(self) -> CompactNet:
        """No part of what is trained and saved."""
        return CompactNet.from_model(self._settings.network).to(self._device)

    def draw(self, number: int) -> Batch:
        image = self._source(number)["high"]
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
        crops = self._source.crops((TEACHER, "low"), size, s.crop // SCALE, generator)
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
        s, generator = self._settings, generator_of(self._seed, number)
        names = ("latent", "high", "low")
        crops = self._source.crops(names, s.loop.batch, s.crop_cells, generator)
        high, low = crops["high"] * 2 - 1, crops["low"] * 2 - 1
        batch = {"target": high, "low": low, "latent": crops["latent"]}
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def forward(self, batch: Batch) -> Batch:
        autoencoder = self.networks.autoencoder
        with torch.no_grad():
            features = autoencoder.encode(batch["low"]).features
        return {"image": autoencoder.decode(batch["latent"], features).float()}

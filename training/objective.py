"""What a stage learns, as the trainer sees it.

`Denoising` is the diffusion's: the prior, and the guidance, which is the paper's fine-tuning
(sections 3.1 and 3.2). `ImageObjective` is that of the stages whose networks make images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.bundle import Networks
from models.schedulers import TRAINING_STEPS, alphas_cumprod
from training.config import StageName
from training.image_loss import ImageLoss
from training.pairs import generator_of

Batch = dict[str, Tensor]

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

    @abstractmethod
    def terms(self, outputs: Batch, batch: Batch, step: int) -> dict[str, Tensor]:
        """Weighted scalars by name; their sum is what is minimised."""


class Denoising(Objective):
    """The prior, which is the UNet without guidance and the constant context; or the guidance.

    The UNet predicts epsilon or v, as the weights' configuration says.
    """

    def __init__(
        self, stage: StageName, networks: Networks, latents: Callable[[int], Batch], seed: int
    ) -> None:
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
    """One whose networks make images: `forward` gives `image`, (n, 3, H, W) in [-1, 1]. `draw`
    makes batches of the source; the settings are the stage's table."""

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
        """Those of the image, and what a stage adds."""
        terms = self.loss.terms(outputs["image"], batch["target"], step)
        terms.update(self.more_terms(outputs))
        if self.loss.has_critic(step):
            rest = torch.stack(list(terms.values())).sum()
            terms["adversarial"] = self.loss.adversarial(outputs["image"], rest, self._last)
        return terms

    def more_terms(self, outputs: Batch) -> dict[str, Tensor]:
        """Those that do not compare image and target."""
        return {}

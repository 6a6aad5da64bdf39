"""All networks of one set of weights, as one module with one state dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.config import AutoencoderConfig, CompactConfig, ModelConfig
from models.networks.autoencoder import Autoencoder
from models.networks.compact import CompactAutoencoder
from models.networks.encoder import TimeAwareEncoder
from models.networks.text import TextTower
from models.networks.unet import ModulatedUNet

AnyAutoencoder = Autoencoder | CompactAutoencoder
"""One protocol: `encode` with features, `latent` and back, `decode` with a fidelity weight."""


def make_autoencoder(
    config: AutoencoderConfig | CompactConfig, *, fusion: bool = True, decoder: bool = True
) -> AnyAutoencoder:
    """The autoencoder of a configuration; arguments as of `Autoencoder`."""
    if isinstance(config, CompactConfig):
        return CompactAutoencoder(config, fusion=fusion, decoder=decoder)
    return Autoencoder(config, fusion=fusion, decoder=decoder)


class Networks(nn.Module):
    """UNet, time-aware encoder, autoencoder with CFW, and the embedding of the empty prompt.

    Args:
        config: sizes.
        first_stage: hold the diffusion file's own autoencoder too, or its encoder, which is all
            that the method uses of it; without it the CFW file's encoder serves both, which is
            right where the two files hold equal encoders.
    """

    def __init__(
        self, config: ModelConfig, *, first_stage: Literal["encoder", "whole"] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.unet = ModulatedUNet(config.unet)
        self.encoder = TimeAwareEncoder(config.encoder)
        self.autoencoder = make_autoencoder(config.autoencoder)
        self.first_stage = (
            make_autoencoder(config.autoencoder, fusion=False, decoder=first_stage == "whole")
            if first_stage is not None
            else None
        )
        self.text = TextTower(config.text) if config.text is not None else None
        # A constant of the released networks, trained with the prior in ours.
        self.context = nn.Parameter(
            torch.zeros(1, config.context_tokens, config.unet.context_width)
        )

    def predict(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        """Encoder and UNet for a batch of tiles, each at its own timestep.

        noisy, lr (n, c, h, w); timesteps n numbers; context (n, tokens, width), None is the empty
        prompt's -> (n, c, h, w).
        """
        return self.denoise(noisy, lr, torch.tensor(timesteps, device=noisy.device), context)

    def denoise(self, noisy: Tensor, lr: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """`predict` with the timesteps as a tensor (n,) on the device."""
        if context is None and not self.unet.knows_context:
            context = self.context.to(noisy.device).expand(len(noisy), -1, -1)
        out: Tensor = self.unet(noisy, t, context, self.encoder(lr, t))
        return out


def channels_last(part: nn.Module) -> None:
    """Lays the kernels of convolutions out so; their results follow.

    A kernel is a `weight` of four dimensions. Keys and values of the constant context have four as
    well, and attention of keys so laid out is none of the fused ones.
    """
    for name, parameter in part.named_parameters():
        if parameter.ndim == 4 and name.endswith(".weight"):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

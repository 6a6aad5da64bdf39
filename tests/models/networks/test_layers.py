"""Our layers beside those of diffusers, with the same parameters under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding as DiffusersEmbedding
from diffusers.models.embeddings import Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from models.config import AutoencoderConfig
from models.networks.autoencoder import Autoencoder
from models.networks.layers import (
    Downsample,
    PixelAttention,
    ResnetBlock,
    TimestepEmbedding,
    Transformer,
    Upsample,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def take_parameters(ours: nn.Module, theirs: nn.Module) -> None:
    """Random ones, those of norms as well."""
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours.load_state_dict(theirs.state_dict())


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out_channels", [8, 16])
@torch.no_grad()
def test_a_residual_block_is_that_of_diffusers(out_channels: int) -> None:
    ours = ResnetBlock(8, out_channels, groups=4, eps=1e-5, embedding_width=12)
    theirs = ResnetBlock2D(
        in_channels=8, out_channels=out_channels, temb_channels=12, groups=4, eps=1e-5
    )
    take_parameters(ours, theirs)
    x, temb = torch.randn(2, 8, 6, 5), torch.randn(2, 12)
    # Ours reads the embedding after the SiLU, which is done once for all blocks.
    assert_same(ours(x, nn.functional.silu(temb)), theirs(x, temb))


@torch.no_grad()
def test_a_transformer_is_that_of_diffusers() -> None:
    ours = Transformer(16, 8, context_width=12, groups=4)
    theirs: Any = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        norm_num_groups=4,
        cross_attention_dim=12,
        use_linear_projection=True,
    )
    take_parameters(ours, theirs)
    x, context = torch.randn(2, 16, 6, 5), torch.randn(2, 3, 12)
    assert_same(ours(x, context), theirs(x, context, return_dict=False)[0])


@torch.no_grad()
def test_attention_of_pixels_is_that_of_diffusers() -> None:
    ours = PixelAttention(16, 8, groups=4, eps=1e-5)
    theirs = Attention(
        16, heads=2, dim_head=8, norm_num_groups=4, eps=1e-5, bias=True, residual_connection=True
    )
    take_parameters(ours, theirs)
    x = torch.randn(2, 16, 6, 5)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Downsample(8, symmetric=True), Downsample2D(8, use_conv=True, name="op")),
        (Downsample(8, symmetric=False), Downsample2D(8, use_conv=True, padding=0, name="op")),
        (Upsample(8), Upsample2D(8, use_conv=True)),
    ],
    ids=["down", "down of an autoencoder", "up"],
)
@torch.no_grad()
def test_another_size_is_reached_as_in_diffusers(ours: nn.Module, theirs: nn.Module) -> None:
    take_parameters(ours, theirs)
    x = torch.randn(2, 8, 6, 4)
    assert_same(ours(x), theirs(x))


@torch.no_grad()
def test_the_embedding_of_a_timestep_is_that_of_diffusers() -> None:
    ours, theirs = TimestepEmbedding(16, 24), DiffusersEmbedding(16, 24)
    take_parameters(ours, theirs)
    timesteps = torch.tensor([0, 1, 250, 999])
    sinusoids = Timesteps(16, flip_sin_to_cos=True, downscale_freq_shift=0)(timesteps)
    assert_same(ours(timesteps), nn.functional.silu(theirs(sinusoids)))


@torch.no_grad()
def test_the_autoencoder_without_fusion_is_that_of_diffusers() -> None:
    config = AutoencoderConfig(widths=(8, 8, 16, 16), layers=2, groups=4)
    ours = Autoencoder(config, fusion=False)
    make: Any = AutoencoderKL
    theirs = make(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.widths,
        layers_per_block=2,
        norm_num_groups=4,
    )
    take_parameters(ours, theirs)
    image = torch.randn(1, 3, 32, 16)
    posterior = theirs.encode(image).latent_dist
    assert_same(ours.encode(image).moments, posterior.parameters)
    latent = torch.randn(1, 4, 4, 2)
    assert_same(ours.decode(latent), theirs.decode(latent).sample)

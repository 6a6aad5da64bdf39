"""The compact autoencoder: its latent, its scale, its configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.folder import load_folder, save_folder
from models.config import AutoencoderConfig, CompactConfig, ModelConfig
from models.networks.autoencoder import Autoencoder
from models.networks.bundle import Networks, make_autoencoder
from models.networks.compact import (
    HAAR_CHANNELS,
    CompactAutoencoder,
    haar,
    inverse_haar,
    quarter,
)
from tests.models.narrow import AUTOENCODER, COMPACT, CONFIG, WITH_COMPACT

CPU = torch.device("cpu")


@pytest.fixture
def compact() -> CompactAutoencoder:
    """No layer is one that does nothing at the start."""
    torch.manual_seed(0)
    autoencoder = CompactAutoencoder(COMPACT)
    for parameter in autoencoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return autoencoder.requires_grad_(False)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_twelve_channels_are_the_image_at_a_quarter_of_its_size(
    compact: CompactAutoencoder,
) -> None:
    image = random_tensor(2, 3, 32, 48)
    latent = compact.encode(image).moments
    assert latent.shape == (2, 16, 4, 6)
    torch.testing.assert_close(latent[:, :HAAR_CHANNELS], haar(quarter(image)))
    torch.testing.assert_close(inverse_haar(latent), quarter(image))


def test_the_basis_is_orthonormal_so_that_errors_are_as_large_in_the_latent_as_in_the_image() -> (
    None
):
    small = random_tensor(2, 3, 6, 10).double()
    latent = haar(small)
    assert latent.shape == (2, HAAR_CHANNELS, 3, 5)
    torch.testing.assert_close(inverse_haar(latent), small)
    torch.testing.assert_close(latent.square().sum(), small.square().sum())
    # And the other way round: every latent is that of an image.
    free = random_tensor(2, HAAR_CHANNELS, 3, 5, seed=1).double()
    torch.testing.assert_close(haar(inverse_haar(free)), free)


def test_of_a_grey_image_all_anchored_channels_but_the_first_are_zero() -> None:
    latent = haar(torch.full((1, 3, 4, 4), 0.5))
    # 2 x 2 pixels are twelve numbers: brightness holds them all.
    torch.testing.assert_close(latent[:, 0], torch.full((1, 2, 2), 0.5 * 12**0.5))
    assert float(latent[:, 1:].abs().max()) < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_a_flat_image_decodes_without_a_pattern_of_2_by_2_inside_a_border(
    compact: CompactAutoencoder, fused: bool
) -> None:
    """If what is interleaved is the same for each place: nothing else differs."""
    fusion = compact.decoder.fusion
    assert fusion is not None
    for conv, places in ((compact.decoder.rise, 4), (fusion.conv_out, 16)):
        assert conv.bias is not None
        for parameter in (conv.weight, conv.bias):
            # Of each so many channels the first.
            parameter.copy_(parameter[::places].clone().repeat_interleave(places, 0))
    side, border = 44, 160
    flat = random_tensor(1, 3, 1, 1).expand(1, 3, 2 * side, 2 * side)
    free = random_tensor(1, 4, 1, 1, seed=1).expand(1, 4, side, side)
    feature = random_tensor(1, COMPACT.quarter_width + 3, 1, 1, seed=2)
    feature = feature.expand(1, -1, 2 * side, 2 * side)
    latent = torch.cat([haar(flat), free], dim=1)
    result = compact.decode(latent, (feature,) if fused else None, torch.tensor(0.8))
    inside = result[..., border:-border, border:-border]
    middle = inside[..., 16:17, 16:17]
    assert float((inside - middle).abs().max()) < 1e-5
    # Beyond the image there are zeros, which is what the border is for.
    assert float((result - middle).abs().max()) > 1e-3


def test_scaled_and_unscaled_latents_are_each_others_inverse(compact: CompactAutoencoder) -> None:
    scale = tuple(0.5 + 0.1 * channel for channel in range(16))
    compact.config = replace(compact.config, latent_scale=scale)
    moments = compact.encode(random_tensor(1, 3, 16, 24)).moments
    latent = compact.latent(moments)
    torch.testing.assert_close(latent, moments * torch.tensor(scale).view(1, 16, 1, 1))
    torch.testing.assert_close(compact.unscale(latent), moments)
    torch.testing.assert_close(compact.latent(moments, torch.ones_like(moments)), latent)


def test_the_released_autoencoders_mean_comes_back_from_its_latent() -> None:
    torch.manual_seed(0)
    released = make_autoencoder(AUTOENCODER).requires_grad_(False)
    moments = released.encode(random_tensor(1, 3, 16, 24)).moments
    torch.testing.assert_close(released.unscale(released.latent(moments)), moments[:, :4])


def test_at_fidelity_0_features_are_not_looked_at(compact: CompactAutoencoder) -> None:
    encoded = compact.encode(random_tensor(1, 3, 32, 24))
    plain = compact.decode(encoded.moments)
    for fidelity, same in ((0.0, True), (0.5, False)):
        result = compact.decode(encoded.moments, encoded.features, torch.tensor(fidelity))
        assert torch.equal(result, plain) == same


def test_without_a_fidelity_weight_it_is_1(compact: CompactAutoencoder) -> None:
    encoded = compact.encode(random_tensor(1, 3, 32, 24))
    most = compact.decode(encoded.moments, encoded.features, torch.tensor(1.0))
    torch.testing.assert_close(compact.decode(encoded.moments, encoded.features), most)


@pytest.mark.parametrize("fidelity", [0.0, 0.25, 1.0])
def test_an_image_lies_between_both_ends_as_the_square_of_the_fidelity_weight(
    compact: CompactAutoencoder, fidelity: float
) -> None:
    encoded = compact.encode(random_tensor(1, 3, 32, 24))
    ends = compact.decode(encoded.moments), compact.decode(encoded.moments, encoded.features)
    result = compact.decode(encoded.moments, encoded.features, torch.tensor(fidelity))
    torch.testing.assert_close(result, torch.lerp(*ends, fidelity**2))


def test_a_new_fusion_returns_the_image_that_was_encoded_as_a_quarter_holds_it() -> None:
    torch.manual_seed(0)
    new = CompactAutoencoder(COMPACT).requires_grad_(False)
    image = random_tensor(1, 3, 8, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    encoded = new.encode(image)
    # Whatever was sampled.
    fused = new.decode(torch.randn_like(encoded.moments), encoded.features)
    expected = F.interpolate(quarter(image), scale_factor=4.0, mode="bicubic")
    torch.testing.assert_close(fused, expected)


def test_a_part_of_an_image_decodes_as_it_does_in_the_whole(compact: CompactAutoencoder) -> None:
    """There is no norm and no attention: what is far away does not count."""
    latent = random_tensor(1, 16, 24, 8)
    whole = compact.decode(latent)
    torch.testing.assert_close(compact.decode(latent[:, :, :12])[:, :, :32], whole[:, :, :32])


def test_without_a_decoder_it_only_encodes() -> None:
    torch.manual_seed(0)
    whole = CompactAutoencoder(COMPACT)
    encoder = make_autoencoder(COMPACT, decoder=False)
    assert isinstance(encoder, CompactAutoencoder)
    encoder.load_state_dict(
        {k: v for k, v in whole.state_dict().items() if k.startswith("encoder.")}
    )
    image = random_tensor(1, 3, 16, 16)
    assert torch.equal(encoder.encode(image).moments, whole.encode(image).moments)
    assert not hasattr(encoder, "decoder")


@pytest.mark.parametrize(
    ("config", "kind"), [(AUTOENCODER, Autoencoder), (COMPACT, CompactAutoencoder)]
)
def test_the_configuration_decides_which_autoencoder_is_made(
    config: AutoencoderConfig | CompactConfig, kind: type
) -> None:
    assert type(make_autoencoder(config)) is kind
    encoded = make_autoencoder(config).encode(random_tensor(1, 3, 16, 32))
    for feature, (width, smaller) in zip(encoded.features, config.feature_widths, strict=True):
        assert tuple(feature.shape) == (1, width, 16 // smaller, 32 // smaller)


@pytest.mark.parametrize("config", [CONFIG, WITH_COMPACT], ids=["released", "compact"])
def test_a_configuration_survives_the_way_through_a_file(config: ModelConfig) -> None:
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_file_that_names_no_kind_has_the_released_autoencoder() -> None:
    data = json.loads(json.dumps(CONFIG.to_json()))
    assert "kind" not in data["autoencoder"]
    assert isinstance(ModelConfig.from_json(data).autoencoder, AutoencoderConfig)


@torch.no_grad()
def test_a_folder_with_a_compact_autoencoder_loads_as_it_was(tmp_path: Path) -> None:
    scale = tuple(0.5 + 0.1 * channel for channel in range(16))
    networks = Networks(replace(WITH_COMPACT, autoencoder=replace(COMPACT, latent_scale=scale)))
    save_folder(networks, tmp_path, torch.float32)
    loaded = load_folder(tmp_path, CPU, torch.float32)
    assert loaded.config == networks.config
    image = random_tensor(1, 3, 16, 16)
    ours, theirs = (n.autoencoder.encode(image).moments for n in (loaded, networks))
    assert torch.equal(loaded.autoencoder.latent(ours), networks.autoencoder.latent(theirs))
    assert torch.equal(loaded.autoencoder.decode(ours), networks.autoencoder.decode(theirs))

"""The middle block's attention, exact and with averaged keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.networks.layers import PixelAttention
from models.strips import Callbacks, MapStore, StripConfig, decode, encode
from models.strips.attention import attend, averaging
from models.strips.executor import Executor
from tests.models.strips.images import CPU, make_small, relative_error


@pytest.fixture
def attention() -> PixelAttention:
    torch.manual_seed(0)
    return PixelAttention(16, 16, groups=4, eps=1e-6)


def in_strips(attention: PixelAttention, x: Tensor, keys: int) -> Tensor:
    height, width = x.shape[2:]
    with MapStore(StripConfig(3, attention_keys=keys), CPU, torch.float32) as store:
        source = store.new(16, height, width, with_statistics=True)
        source.write(0, x)
        return attend(Executor(store, 1, Callbacks()), source, attention).read(0, height).clone()


def average(attention: PixelAttention, x: Tensor, factor: int) -> Tensor:
    """Every pixel's key and value replaced by its block's average, all of them kept."""
    height, width = x.shape[2:]
    normal = attention.group_norm(x)
    means = F.avg_pool2d(normal, factor, ceil_mode=True, count_include_pad=False)
    blocks = F.interpolate(means, scale_factor=factor)[:, :, :height, :width]
    pixels, blocks = (t.flatten(2).transpose(1, 2) for t in (normal, blocks))
    key, value = attention.to_k(blocks), attention.to_v(blocks)
    out = F.scaled_dot_product_attention(attention.to_q(pixels), key, value)
    mixture: Tensor = attention.to_out[0](out)
    return x + mixture.transpose(1, 2).view_as(x)


def test_up_to_the_bound_attention_is_exact(attention: PixelAttention) -> None:
    x = torch.randn(1, 16, 7, 10) + torch.linspace(0, 3, 10)
    assert relative_error(in_strips(attention, x, keys=70), attention(x)) < 1e-6


@pytest.mark.parametrize(("keys", "factor"), [(69, 2), (20, 2), (19, 3), (1, 10)])
def test_above_it_keys_are_averages_that_weigh_as_much_as_they_cover(
    attention: PixelAttention, keys: int, factor: int
) -> None:
    x = torch.randn(1, 16, 7, 10) + torch.linspace(0, 3, 10)
    result = in_strips(attention, x, keys)
    assert relative_error(result, average(attention, x, factor)) < 1e-6
    assert relative_error(result, attention(x)) > 1e-4


@pytest.mark.parametrize(
    ("height", "width", "keys", "factor"),
    [(8, 8, 64, 1), (8, 8, 63, 2), (9, 9, 25, 2), (9, 9, 24, 3), (1, 520, 65_536, 1)],
)
def test_the_smallest_average_that_fits_is_taken(
    height: int, width: int, keys: int, factor: int
) -> None:
    assert averaging(height, width, keys) == factor


def test_queries_in_chunks_see_all_keys(
    attention: PixelAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.strips.attention._SCORES", 70 * 4)
    x = torch.randn(1, 16, 7, 10)
    assert relative_error(in_strips(attention, x, keys=70), attention(x)) < 1e-6


def test_averaging_changes_a_photograph_by_less_than_a_hundredth() -> None:
    autoencoder = make_small()
    path = Path(__file__).parents[2] / "photographs" / "kitten.webp"
    small = Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 127.5 - 1
    results = []
    for keys in (256, 255):
        strips = StripConfig(attention_keys=keys)
        with encode(autoencoder, image, strips) as output:
            latent = output.moments.chunk(2, dim=1)[0]
            results.append(decode(autoencoder, latent, output.features, 0.5, strips))
    exact, approximate = results
    assert 1e-5 < relative_error(approximate, exact) < 1e-2

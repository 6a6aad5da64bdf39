"""What is said beforehand is what is used."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import AutoencoderConfig
from models.networks.autoencoder import Autoencoder
from models.strips import Callbacks, StripConfig, coding_cost
from models.strips import store as stores
from tests.models.strips.images import (
    CPU,
    coded_whole,
    decode_strips,
    encode_strips,
    picture,
)

HEIGHT, WIDTH = 192, 64


def counted(autoencoder: Autoencoder, *, decode: bool, fusion: bool) -> int:
    """By torch, over the whole image."""
    image = picture(HEIGHT, WIDTH)
    encoded, latent, _, _ = coded_whole(autoencoder, image, 1.0)
    features = encoded.features if fusion else None
    # The counter does not know the processor's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if decode:
            autoencoder.decode(latent, features, torch.tensor(1.0))
        else:
            autoencoder.encode(image)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("decode", "fusion"), [(False, True), (True, False), (True, True)], ids=str
)
def test_flops_are_those_that_torch_counts(small: Autoencoder, decode: bool, fusion: bool) -> None:
    sizes = (small.config, HEIGHT, WIDTH, StripConfig(), torch.float32)
    cost = coding_cost(*sizes, decode=decode, fusion=fusion)
    assert cost.flops == counted(small, decode=decode, fusion=fusion)


def test_the_released_sizes_flops_are_the_known_ones() -> None:
    # A 512 x 512 image, in TFLOP.
    known = {(False, True): 1.12, (True, True): 4.97}
    for (decode, fusion), tera in known.items():
        sizes = (AutoencoderConfig(), 512, 512, StripConfig(), torch.float32)
        cost = coding_cost(*sizes, decode=decode, fusion=fusion)
        assert cost.flops / 1e12 == pytest.approx(tera, rel=0.03)


@pytest.mark.parametrize("rows", [4, 32, 4096])
@pytest.mark.parametrize("fusion", [False, True])
def test_maps_take_what_was_said(
    small: Autoencoder, monkeypatch: pytest.MonkeyPatch, rows: int, fusion: bool
) -> None:
    opened: list[stores.MapStore] = []
    enter = stores.MapStore.__init__

    def seen(self: stores.MapStore, *args: object) -> None:
        enter(self, *args)  # type: ignore[arg-type]  # passed on as they came
        if self.device == CPU:  # the rehearsals' are on none
            opened.append(self)

    strips = StripConfig(rows)
    sizes = (small.config, HEIGHT, WIDTH, strips, torch.float32)
    said = [coding_cost(*sizes, decode=decode, fusion=fusion).maps for decode in (False, True)]
    monkeypatch.setattr(stores.MapStore, "__init__", seen)
    with encode_strips(small, picture(HEIGHT, WIDTH), strips, features=fusion) as found:
        latent = found.moments.chunk(2, dim=1)[0]
        held: list[int] = []
        decode_strips(
            small,
            latent,
            found.features,
            1.0,
            strips,
            callbacks=Callbacks(lambda _: held.append(sum(s.held for s in opened))),
        )
    encoding, decoding = opened
    assert 0.75 * said[0] < encoding.peak <= said[0]
    assert 0.7 * said[1] < max(held) <= said[1]
    assert decoding.held == encoding.held == 0


def test_maps_are_two_of_the_widest_level_and_strips_are_as_thin_as_they_are_cut() -> None:
    size, dtype = (2048, 4096), torch.bfloat16
    # As wide as an image row has pixels.
    maps = 2 * 128 * 2 * size[0] * size[1]
    cost, thin = (
        coding_cost(AutoencoderConfig(), *size, StripConfig(rows), dtype, decode=True, fusion=False)
        for rows in (64, 8)
    )
    assert maps <= cost.maps < 1.25 * maps
    assert thin.strips < 0.5 * cost.strips < 0.5 * maps


def test_pieces_hold_less_than_the_whole_at_once(small: Autoencoder) -> None:
    sizes = (small.config, 4096, 4096)
    few, many = (
        sum(coding_cost(*sizes, StripConfig(rows), torch.float32, decode=True, fusion=True)[1:])
        for rows in (16, 4096)
    )
    assert few < 0.5 * many

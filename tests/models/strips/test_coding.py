"""Coding in strips gives what coding the whole image gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.networks.autoencoder import Autoencoder
from models.networks.bundle import AnyAutoencoder
from models.strips import Keep, StripConfig
from tests.models.strips.conftest import make_small, make_tiny
from tests.models.strips.images import (
    coded_whole,
    decode_strips,
    encode_strips,
    open_files,
    picture,
    relative_error,
)

FIDELITY = 0.7
EXACT = 3e-6
SEAMLESS = 1.5


@pytest.mark.parametrize(
    ("weights", "height", "width"),
    [
        ("small", 8, 8),
        ("small", 8, 264),
        ("small", 264, 40),
        ("small", 136, 152),
        ("tiny", 8, 8),
        ("tiny", 136, 72),
    ],
)
def test_pieces_give_the_whole_images_result(
    small: Autoencoder, weights: str, height: int, width: int
) -> None:
    autoencoder: AnyAutoencoder = small if weights == "small" else make_tiny()
    image = picture(height, width)
    encoded, latent, wrapped, plain = coded_whole(autoencoder, image, FIDELITY)
    strips = StripConfig(rows=24)
    with encode_strips(autoencoder, image, strips) as found:
        assert found.features is not None
        assert relative_error(found.moments, encoded.moments) < EXACT
        for feature, wanted in zip(found.features, encoded.features, strict=True):
            assert relative_error(feature.read(0, feature.height), wanted) < EXACT
        fused = decode_strips(autoencoder, latent, found.features, FIDELITY, strips)
    assert fused.shape == image.shape
    assert fused.dtype == torch.float32
    assert relative_error(fused, wrapped) < EXACT
    unfused = decode_strips(autoencoder, latent, (), FIDELITY, strips)
    assert relative_error(unfused, plain) < EXACT


@pytest.mark.parametrize("rows", [1, 5, 32, 4096])
def test_the_height_of_strips_does_not_matter(small: Autoencoder, rows: int) -> None:
    image = picture(72, 40)
    _, latent, wrapped, _ = coded_whole(small, image, FIDELITY)
    strips = StripConfig(rows=rows)
    with encode_strips(small, image, strips) as found:
        assert relative_error(found.moments.chunk(2, dim=1)[0], latent) < EXACT
        out = decode_strips(small, latent, found.features, FIDELITY, strips)
    assert float((out - wrapped).abs().max()) < 1e-5 * float(wrapped.abs().max())


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
def test_where_maps_are_kept_changes_not_one_bit(
    small: Autoencoder, keep: Keep, tmp_path: Path
) -> None:
    image = picture(72, 64)
    results = []
    for strips in (StripConfig(rows=16), StripConfig(rows=16, keep=keep, scratch=tmp_path)):
        with encode_strips(small, image, strips) as found:
            latent = found.moments.chunk(2, dim=1)[0]
            results.append(decode_strips(small, latent, found.features, 1.0, strips))
            assert bool(open_files(tmp_path)) == (strips.keep == "disk")
    assert torch.equal(*results)
    assert not list(tmp_path.iterdir())
    assert not open_files(tmp_path)


def test_the_same_image_gives_the_same_bits_again(small: Autoencoder) -> None:
    image, strips = picture(72, 64), StripConfig(rows=16)
    results = []
    for _ in range(2):
        with encode_strips(small, image, strips) as found:
            latent = found.moments.chunk(2, dim=1)[0]
            results.append(decode_strips(small, latent, found.features, 1.0, strips))
    assert torch.equal(*results)


def test_there_is_no_seam_where_strips_meet(small: Autoencoder) -> None:
    rows = 16
    image = picture(192, 64)
    _, latent, wrapped, _ = coded_whole(small, image, 1.0)
    with encode_strips(small, image, StripConfig(rows)) as found:
        out = decode_strips(small, latent, found.features, 1.0, StripConfig(rows))
    difference = (out - wrapped).abs()[0].mean(dim=(0, 2))
    line = torch.arange(192)
    beside = (line % rows == 0) | (line % rows == rows - 1)
    # A twelfth of the rows lies at borders; a seam stands out by orders of magnitude.
    assert difference[beside].mean() < 1.3 * difference[~beside].mean()
    assert difference.max() < 1e-5 * wrapped.abs().max()


@pytest.mark.parametrize("fidelity", [0.0, 1.0], ids=["plain", "wrapped"])
@pytest.mark.parametrize("weights", ["small", "tiny"])
@pytest.mark.parametrize(("height", "width", "rows"), [(200, 72, 24), (136, 88, 16)])
def test_the_largest_difference_at_a_border_is_no_larger_than_elsewhere(
    small: Autoencoder, weights: str, height: int, width: int, rows: int, fidelity: float
) -> None:
    """Neither height is a multiple of the strip's, and the last strip is a shorter one."""
    autoencoder: AnyAutoencoder = small if weights == "small" else make_tiny()
    image = picture(height, width)
    _, latent, wrapped, plain = coded_whole(autoencoder, image, fidelity)
    with encode_strips(autoencoder, image, StripConfig(rows)) as found:
        out = decode_strips(autoencoder, latent, found.features, fidelity, StripConfig(rows))
    wanted = wrapped if fidelity else plain
    difference = (out - wanted).abs()[0].amax(dim=(0, 2))
    line = torch.arange(height)
    beside = (line % rows == 0) | (line % rows == rows - 1)
    beside[0] = beside[-1] = False
    # Rounding in float32, the largest of a few thousand values against that of ten times as many;
    # a seam stands out by orders of magnitude.
    assert difference[beside].max() < SEAMLESS * difference[~beside].max()
    assert difference.max() < 1e-5 * wanted.abs().max()


def test_fidelity_0_decodes_plainly_and_features_need_not_be_kept(small: Autoencoder) -> None:
    image, strips = picture(64, 72), StripConfig(rows=16)
    _, latent, _, plain = coded_whole(small, image, 0.0)
    with encode_strips(small, image, strips, features=False) as without:
        assert without.features == ()
    with encode_strips(small, image, strips) as found:
        assert torch.equal(found.moments, without.moments)
        out = decode_strips(small, latent, found.features, 0.0, strips)
    assert relative_error(out, plain) < EXACT


def test_features_can_be_read_again_unless_they_are_to_be_freed(small: Autoencoder) -> None:
    image, strips = picture(72, 64), StripConfig(rows=16)
    with encode_strips(small, image, strips) as found:
        latent = found.moments.chunk(2, dim=1)[0]
        assert found.features is not None
        kept = found.features[0].read(0, 36).clone()
        first = decode_strips(small, latent, found.features, 1.0, strips)
        assert torch.equal(found.features[0].read(0, 36), kept)
        last = decode_strips(small, latent, found.features, 1.0, strips, free_features=True)
        assert torch.equal(first, last)
        assert found.held == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_pieces_are_no_worse_than_the_whole(dtype: torch.dtype) -> None:
    image = picture(72, 64)
    _, latent, exact, _ = coded_whole(make_small(), image, 1.0)
    half = make_small().to(dtype)
    features = half.encode(image.to(dtype)).features
    whole = half.decode(latent.to(dtype), features, torch.tensor(1.0, dtype=dtype))
    strips = StripConfig(rows=16)
    with encode_strips(half, image, strips) as found:
        cut = decode_strips(half, latent, found.features, 1.0, strips)
    assert relative_error(cut, exact) < 1.2 * relative_error(whole, exact)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"attention_keys": 0}], ids=str)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StripConfig(**wrong)  # type: ignore[arg-type]  # no other field is given

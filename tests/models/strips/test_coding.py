"""Coding in strips gives what coding the whole image gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.networks.autoencoder import Autoencoder
from models.networks.bundle import AnyAutoencoder
from models.networks.compact import CompactAutoencoder
from models.strips import Keep, StripConfig, decode, encode
from models.strips import compact as passes
from tests.models.strips.images import (
    code_whole,
    latent_of,
    load_tiny,
    make_image,
    make_small,
    open_files,
    relative_error,
)

FIDELITY = 0.7
EXACT = 3e-6
SEAMLESS = 1.5


def check_image(autoencoder: AnyAutoencoder, height: int, width: int, strips: StripConfig) -> None:
    """Moments, features and both decoded images are the whole image's."""
    image = make_image(height, width)
    whole, latent, fusion, plain = code_whole(autoencoder, image, FIDELITY)
    with encode(autoencoder, image, strips) as output:
        assert output.moments.shape == whole.moments.shape
        assert relative_error(output.moments, whole.moments) < EXACT
        for feature, reference in zip(output.features, whole.features, strict=True):
            assert relative_error(feature.read(0, feature.height), reference) < EXACT
        for fidelity, features, reference in (
            (FIDELITY, output.features, fusion),
            (0.0, output.features, plain),
            (FIDELITY, (), plain),
        ):
            result = decode(autoencoder, latent, features, fidelity, strips)
            assert result.shape == image.shape
            assert result.dtype == torch.float32
            assert relative_error(result, reference) < EXACT
            assert float((result - reference).abs().max()) < 1e-5 * float(reference.abs().max())
    assert relative_error(fusion, plain) > 1e-3


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 264), (264, 40), (136, 152)])
def test_strips_give_the_whole_images_result(
    autoencoder: AnyAutoencoder, height: int, width: int
) -> None:
    check_image(autoencoder, height, width, StripConfig(24))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (136, 72)])
def test_strips_give_the_whole_images_result_with_embedded_weights(height: int, width: int) -> None:
    check_image(load_tiny(), height, width, StripConfig(24))


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 32, 4096])
def test_the_height_of_strips_does_not_matter(autoencoder: AnyAutoencoder, rows: int) -> None:
    check_image(autoencoder, 72, 40, StripConfig(rows))


@pytest.mark.parametrize("together", [1, 3, 100])
def test_how_many_convolutions_are_one_pass_does_not_matter(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(passes, "_TOGETHER", together)
    check_image(compact, 72, 40, StripConfig(12))


@pytest.mark.parametrize("keep", ["device", "host", "disk"])
def test_where_maps_are_kept_changes_not_one_bit(
    autoencoder: AnyAutoencoder, keep: Keep, tmp_path: Path
) -> None:
    image = make_image(72, 64)
    results: list[Tensor] = []
    for strips in (StripConfig(16), StripConfig(16, keep)):
        with encode(autoencoder, image, strips) as output:
            latent = latent_of(autoencoder, output.moments)
            results.append(decode(autoencoder, latent, output.features, FIDELITY, strips))
            assert bool(open_files(tmp_path)) == (strips.keep == "disk")
    assert torch.equal(*results)
    assert not list(tmp_path.iterdir())
    assert not open_files(tmp_path)


def test_features_can_be_read_again_with_the_same_bits(autoencoder: AnyAutoencoder) -> None:
    image, strips = make_image(72, 64), StripConfig(16)
    with encode(autoencoder, image, strips) as output:
        latent = latent_of(autoencoder, output.moments)
        rows = output.features[0].read(0, 18).clone()
        first = decode(autoencoder, latent, output.features, 1.0, strips)
        assert torch.equal(output.features[0].read(0, 18), rows)
        assert torch.equal(decode(autoencoder, latent, output.features, 1.0, strips), first)
        assert output.nbytes > 0
    assert output.nbytes == 0


def test_there_is_no_seam_where_strips_meet(small: Autoencoder) -> None:
    rows = 16
    image = make_image(192, 64)
    _, latent, fusion, _ = code_whole(small, image, 1.0)
    with encode(small, image, StripConfig(rows)) as output:
        result = decode(small, latent, output.features, 1.0, StripConfig(rows))
    difference = (result - fusion).abs()[0].mean(dim=(0, 2))
    line = torch.arange(192)
    beside = (line % rows == 0) | (line % rows == rows - 1)
    # A twelfth of the rows lies at borders; a seam stands out by orders of magnitude.
    assert difference[beside].mean() < 1.3 * difference[~beside].mean()
    assert difference.max() < 1e-5 * fusion.abs().max()


@pytest.mark.parametrize("fidelity", [0.0, 1.0], ids=["plain", "fusion"])
@pytest.mark.parametrize("weights", ["small", "tiny"])
@pytest.mark.parametrize(("height", "width", "rows"), [(200, 72, 24), (136, 88, 16)])
def test_the_largest_difference_at_a_border_is_no_larger_than_elsewhere(
    small: Autoencoder, weights: str, height: int, width: int, rows: int, fidelity: float
) -> None:
    """Neither height is a multiple of the strip's, and the last strip is a shorter one."""
    autoencoder: AnyAutoencoder = small if weights == "small" else load_tiny()
    image = make_image(height, width)
    _, latent, fusion, plain = code_whole(autoencoder, image, fidelity)
    with encode(autoencoder, image, StripConfig(rows)) as output:
        result = decode(autoencoder, latent, output.features, fidelity, StripConfig(rows))
    reference = fusion if fidelity else plain
    difference = (result - reference).abs()[0].amax(dim=(0, 2))
    line = torch.arange(height)
    beside = (line % rows == 0) | (line % rows == rows - 1)
    beside[0] = beside[-1] = False
    # Rounding in float32, the largest of a few thousand values against that of ten times as many;
    # a seam stands out by orders of magnitude.
    assert difference[beside].max() < SEAMLESS * difference[~beside].max()
    assert difference.max() < 2e-5 * reference.abs().max()


def test_features_need_not_be_kept(autoencoder: AnyAutoencoder) -> None:
    image, strips = make_image(64, 72), StripConfig(16)
    with encode(autoencoder, image, strips, features=False) as output:
        assert output.features == ()
        assert output.nbytes == 0
    with encode(autoencoder, image, strips) as with_features:
        assert torch.equal(with_features.moments, output.moments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_strips_are_no_worse_than_the_whole(dtype: torch.dtype) -> None:
    image = make_image(72, 64)
    _, latent, exact, _ = code_whole(make_small(), image, 1.0)
    half = make_small().to(dtype)
    features = half.encode(image.to(dtype)).features
    whole = half.decode(latent.to(dtype), features, torch.tensor(1.0, dtype=dtype))
    strips = StripConfig(16)
    with encode(half, image, strips) as output:
        result = decode(half, latent, output.features, 1.0, strips)
    assert relative_error(result, exact) < 1.2 * relative_error(whole, exact)


def test_where_memory_was_short_the_whole_image_is_not_decoded_at_once(
    compact: CompactAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    strips = StripConfig(4096, "disk")
    with encode(compact, make_image(64, 32), strips) as output:
        reference = compact.decode(output.moments)

        def fail(*arguments: object) -> Tensor:
            raise torch.OutOfMemoryError("out of memory")

        monkeypatch.setattr(compact, "decode", fail)
        result = decode(compact, output.moments, (), 0.0, strips)
        assert relative_error(result, reference) < 1e-5
        with pytest.raises(torch.OutOfMemoryError):
            decode(compact, output.moments, (), 0.0, StripConfig(4096))


@pytest.mark.parametrize("values", [{"height": 0}, {"attention_keys": 0}], ids=str)
def test_settings_that_mean_nothing_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StripConfig(**values)  # type: ignore[arg-type]  # the other fields have other types

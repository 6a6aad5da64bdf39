"""JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.test_degradation import photograph, psnr
from training.filters import jpeg


@pytest.mark.parametrize("quality", [30, 60, 75, 90, 95])
@pytest.mark.parametrize("name", ["petra", "red_panda"])
def test_jpeg_in_torch_agrees_with_a_real_codec(name: str, quality: int) -> None:
    image = photograph(name, 200)  # not a multiple of 16
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as file:
        real = torch.from_numpy(np.array(file)).permute(2, 0, 1)[None] / 255
    ours = jpeg(image, quality)
    # Far closer to the codec than either is to the photograph, and no better than the codec.
    assert psnr(ours, real) > psnr(real, image) + 3
    assert abs(psnr(ours, image) - psnr(real, image)) < 0.8


@pytest.mark.parametrize("quality", [0, 101])
def test_a_jpeg_quality_that_does_not_exist_is_refused(quality: float) -> None:
    with pytest.raises(ValueError, match=str(quality)):
        jpeg(torch.zeros(1, 3, 16, 16), quality)

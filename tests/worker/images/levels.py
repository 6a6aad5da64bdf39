"""The levels of a decoded image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worker.images import DecodedImage

FILES = Path(__file__).with_name("files")
"""Small files of kinds that no writer here makes."""


def levels(image: DecodedImage) -> NDArray[np.uint8]:
    """(H, W, 3) of 0 to 255, exact when decoding was."""
    return (image.rgb[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def levels16(image: DecodedImage) -> NDArray[np.int32]:
    """(H, W, C) of 0 to 65535, the opacity last."""
    planes = [image.rgb[0, :1] if image.grey else image.rgb[0]]
    if image.alpha is not None:
        planes.append(image.alpha[0])
    return (torch.cat(planes).permute(1, 2, 0) * 65535).round().to(torch.int32).numpy()

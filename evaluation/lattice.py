"""How much of a lattice a picture shows: patterns that repeat with a decoder's cells.

Decoders that interleave channels, or work in latent pixels of 8 x 8, leave patterns of period 2, 4
and 8. Two scores find them, of luma: the power of neighbours' differences at the frequencies of
such a pattern, over what is around these frequencies; and in flat places, how far the mean of each
of the 4 x 4 places is from the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from evaluation.pictures import Pixels

__all__ = ["lattice", "phase"]

_Plane = npt.NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])
_EIGHTHS = (1, 2, 3, 4)  # cycles a pixel
_AROUND = 36  # of all frequencies, the share that one is compared with, on either side
_PERIOD, _MEAN, _FLAT = 4, 9, 12.0  # pixels, pixels, grey levels


def lattice(picture: Pixels) -> float:
    """The strongest line in dB, of rows and columns; pictures without a lattice have about 1.

    Pixels (height, width, 3), 8 bits, at least 64 a side.
    """
    y = picture.astype(np.float64) @ _LUMA
    return max(_line(y), _line(y.T))


def _line(y: _Plane) -> float:
    steps = np.diff(y, axis=1)
    n = steps.shape[1] // 8 * 8
    spectrum = np.abs(np.fft.rfft(steps[:, :n] * np.hanning(n), axis=1)) ** 2
    power = spectrum.mean(axis=0)
    reach = max(4, n // _AROUND)
    strongest = 0.0
    for eighth in _EIGHTHS:
        at = n * eighth // 8
        near = range(max(at - reach, 1), min(at + reach + 1, len(power)))
        around = np.median([power[i] for i in near if abs(i - at) > 2])
        peak = power[max(at - 1, 0) : at + 2].max()
        strongest = max(strongest, 10 * float(np.log10((peak + 1e-9) / (around + 1e-9))))
    return strongest


def phase(picture: Pixels) -> float:
    """Deviation of the means of 4 x 4 phases in flat places, in grey levels; photographs: 0.03."""
    y = picture.astype(np.float64) @ _LUMA
    high = y - ndimage.uniform_filter(y, _MEAN)
    flat = np.abs(high) < _FLAT
    places = [np.s_[i::_PERIOD, j::_PERIOD] for i in range(_PERIOD) for j in range(_PERIOD)]
    return float(np.std([high[at][flat[at]].mean() if flat[at].any() else 0.0 for at in places]))

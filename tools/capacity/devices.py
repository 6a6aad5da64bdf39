"""How long a worker's parts take on each device, as measured, and where that is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Device:
    """One worker: a preset's networks on one GPU, or on two cores.

    `calls` are tiles of a network call and its seconds. `encode_s` and `decode_s` are of a canvas
    of 512 x 512 pixels, and grow with the area; `write_s`, on a core beside the device, too.
    """

    preset: str
    calls: tuple[tuple[int, float], ...]
    encode_s: float
    decode_s: float
    write_s: float
    slots: int
    start_s: float
    """From the pod's start to its first job: weights are read, compiled calls come from a cache"""
    usd_an_hour: float
    """An assumption: what such a machine is rented for"""
    origin: str

    @property
    def max_tiles(self) -> int:
        return self.calls[-1][0]

    def call_s(self, tiles: int) -> float:
        """Seconds of a network call of so many tiles."""
        counts, seconds = zip(*self.calls, strict=True)
        return float(np.interp(tiles, counts, seconds))


_H200 = Device(
    preset="stablesr-512",
    calls=((1, 0.010), (4, 0.018), (16, 0.072)),
    encode_s=0.06,
    decode_s=0.14,
    write_s=0.02,
    slots=16,
    start_s=60,
    usd_an_hour=3.5,
    origin="docs/performance.md, 2026-11-26: a tile and step, compiled, bfloat16, 0.009 to 0.011 "
    "s, of batches of 4 0.004 to 0.005 s; 0.2 s for encoding and decoding is what 16 jobs of 20 "
    "steps, one at a time, leave beside their steps. Larger calls are taken to gain nothing more.",
)
_SLOWER = 4.8 / 3.35

DEVICES = {
    "h200": _H200,
    "h100": Device(
        preset="stablesr-512",
        calls=tuple((tiles, seconds * _SLOWER) for tiles, seconds in _H200.calls),
        encode_s=_H200.encode_s * _SLOWER,
        decode_s=_H200.decode_s * _SLOWER,
        write_s=0.02,
        slots=16,
        start_s=60,
        usd_an_hour=2.5,
        origin="not measured: the H200's times, longer by the ratio of the cards' bandwidths "
        "of memory (4.8 and 3.35 TB/s, by NVIDIA), which is the most that they can differ.",
    ),
    "cpu": Device(
        preset="tiny",
        calls=((1, 0.18), (8, 1.2)),
        encode_s=0.08,
        decode_s=0.6,
        write_s=0.01,
        slots=2,
        start_s=10,
        usd_an_hour=0.1,
        origin="`python -m benchmarks.image --sizes 512 1024 --w 0.5`, 2026-11-29, two cores of an "
        "AMD EPYC.",
    ),
}

SIZES = ((128, 0.7), (256, 0.25), (512, 0.05))
"""Sides of square uploads, px, and their shares; all are enlarged four times. An assumption."""

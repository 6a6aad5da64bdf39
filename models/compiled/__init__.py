"""Network calls of fixed sizes, compiled: `torch.compile` of encoder and UNet as one graph.

A graph is made for one number of tiles, so calls are padded to the next bucket (1, 2, 4, 8 ...),
and each bucket has a callable of its own; on CUDA it is recorded as a CUDA graph. What was compiled
is kept on disk, so that a restart does not compile again.
"""

from __future__ import annotations

from models.compiled.buckets import bucket_of, padded, room
from models.compiled.compiling import Compiling, Mode
from models.compiled.denoiser import Apart, Denoiser, Denoises
from models.compiled.graphs import Graphs

__all__ = [
    "Apart",
    "Compiling",
    "Denoiser",
    "Denoises",
    "Graphs",
    "Mode",
    "bucket_of",
    "padded",
    "room",
]

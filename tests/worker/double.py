"""A pipeline without weights whose steps can be told to be slow, to fail, to hang or to crash.

What happens to a job follows from its seed; a seed below 1000 runs as it should. `main` is a
worker process with it: the real supervisor, slots, engine and tasks.
"""

from __future__ import annotations

import datetime as datetime_module
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import rq.utils
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from jobs.logs import configure_logging
from jobs.settings import Settings
from models.geometry import output_size
from models.parameters import UpscaleParameters
from models.pipeline import StableSR
from models.sampling import Sampler, StepRequest
from worker.supervisor import Supervisor

CRASH, HANG, HANG_ONCE, HANG_DECODING, ERROR, OUT_OF_MEMORY, DEVICE_ERROR = range(1001, 1008)

TROUBLE_STEP = 2


@dataclass(frozen=True)
class Encoded:
    pixels: Tensor
    size: tuple[int, int]
    summary: Mapping[str, object] = field(default_factory=dict)

    def close(self) -> None:
        pass


class Double:
    """Stands in for `StableSR`: its result is the image enlarged, shifted by the sampling."""

    def __init__(self, *, step_s: float = 0.0, marks: Path | None = None) -> None:
        self._step_s = step_s
        self._marks = marks

    @property
    def tile_batch(self) -> int:
        return 8

    @property
    def offload(self) -> bool:
        return False

    @property
    def fallbacks(self) -> Mapping[str, int]:
        return {"rows": 2}

    def steps_in(self, image: Tensor, options: UpscaleParameters) -> bool:
        return False

    def prepare(
        self, image: Tensor, options: UpscaleParameters, on_progress: Callable[[float], None]
    ) -> Encoded:
        return Encoded(image, output_size(image.shape[2], image.shape[3], options.scale))

    def sample(self, image: Encoded, options: UpscaleParameters) -> Sampler:
        noise = torch.Generator().manual_seed(options.seed)
        canvas = torch.randn(2, 4, 8, 8, generator=noise)
        lr = image.pixels.mean().expand(2, 4, 8, 8)
        seed = torch.full((2, 1, 1), float(options.seed))
        steps = options.steps or 1
        for step in range(steps):
            tiles = yield StepRequest(canvas, lr, 999 - step, seed, step, steps)
            canvas = torch.stack(list(tiles))
        return canvas

    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        time.sleep(self._step_s)
        return [self._prediction(request) for request in requests]

    def _prediction(self, request: StepRequest) -> Tensor:
        assert request.context is not None  # `sample` gives one
        if request.step >= TROUBLE_STEP:
            self._trouble(int(request.context[0, 0, 0]))
        x = request.noisy + request.lr * request.timestep
        return torch.sin(x + request.context[:, :, None])

    def rows(
        self,
        image: Encoded,
        latent: Tensor,
        options: UpscaleParameters,
        on_progress: Callable[[float], None],
    ) -> Iterator[Tensor]:
        if options.seed == HANG_DECODING:
            time.sleep(3600)
        larger = interpolate(image.pixels, image.size)
        texture = interpolate(latent[:1, :3], image.size)
        return iter((larger + 0.2 * texture).clamp(0, 1))

    def _trouble(self, seed: int) -> None:
        if seed == CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == HANG or (seed == HANG_ONCE and self._first()):
            time.sleep(3600)
        if seed == ERROR:
            raise ValueError("the network does not like this image")
        if seed == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("no memory for one tile")
        if seed == DEVICE_ERROR and self._first():
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    def _first(self) -> bool:
        """Whether nothing was asked before, in any process that shares the folder of marks."""
        assert self._marks is not None
        try:
            (self._marks / "happened").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class CountedImage(Encoded):
    """Says when it is closed."""

    double: Counting | None = None

    def close(self) -> None:
        assert self.double is not None
        self.double.count -= 1 if self.double.count else 0


class Counting(Double):
    """Counts the images whose features it holds; decodes in strips of two rows."""

    count = 0
    count_when_written = -1

    def prepare(
        self, image: Tensor, options: UpscaleParameters, on_progress: Callable[[float], None]
    ) -> Encoded:
        plain = super().prepare(image, options, on_progress)
        on_progress(0.5)
        self.count += 1
        return CountedImage(plain.pixels, plain.size, {"keep": "disk", "rows": 2}, self)

    def rows(
        self,
        image: Encoded,
        latent: Tensor,
        options: UpscaleParameters,
        on_progress: Callable[[float], None],
    ) -> Iterator[Tensor]:
        whole = torch.cat(list(super().rows(image, latent, options, on_progress)), dim=1)
        for part in range(4):
            on_progress(part / 4)
        return self._strips(whole)

    def _strips(self, whole: Tensor) -> Iterator[Tensor]:
        self.count_when_written = self.count
        yield from torch.split(whole, 2, dim=1)


def shift_clock(seconds: float) -> None:
    """From now on this process's clock is so many seconds ahead, for RQ and for us."""
    right = time.time

    class Clock(datetime_module.datetime):
        @classmethod
        def now(cls, tz: datetime_module.tzinfo | None = None) -> Clock:
            return cls.fromtimestamp(right() + seconds, tz)

    module = SimpleNamespace(**{**vars(datetime_module), "datetime": Clock})
    vars(rq.utils)["datetime"] = module
    vars(time)["time"] = lambda: right() + seconds


def main(settings: Settings, *, step_s: float, load_s: float) -> int:
    """A worker whose model takes `load_s` to load and `step_s` for a call, and where the settings
    have it compiled waits for a file between the two of its sizes."""
    configure_logging(settings)

    def load(on_compile: Callable[[int, int], None]) -> StableSR:
        time.sleep(load_s)
        folder = settings.blob_root.parent
        if settings.compile == "on":
            on_compile(0, 2)
            while not (folder / "compiled").exists():
                time.sleep(0.02)
            on_compile(1, 2)
        return cast(StableSR, Double(step_s=step_s, marks=folder))

    return Supervisor(settings, load, device="double").run()

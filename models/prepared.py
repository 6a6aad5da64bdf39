"""An image between its encoding and its decoding."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from torch import Tensor

from models.autoencoding import Encoding
from models.memory import Memory
from models.plan import Plan

__all__ = ["Prepared", "Progress"]


@dataclass(frozen=True)
class Prepared:
    """An image ready to be sampled. Holds memory or files until it is closed."""

    plan: Plan
    reference: Tensor
    """The upsampled, padded image in [-1, 1], (1, 3, H, W), on the host."""
    encoding: Encoding

    @property
    def latent(self) -> Tensor:
        """Its scaled latent, float32 (1, c, H/8, W/8), on the device."""
        return self.encoding.latent

    @property
    def summary(self) -> dict[str, object]:
        """The plan as the encoding left it, for a log line."""
        return {**self.plan.summary, "keep": self.encoding.keep}

    @property
    def held(self) -> Memory:
        """Bytes that this image has taken already."""
        keep, features = self.encoding.keep, self.encoding.held
        latent, reference = self.latent.nbytes, self.reference.nbytes
        return Memory(
            latent + features * (keep == "device"),
            reference + features * (keep == "host"),
            features * (keep == "disk"),
        )

    def close(self) -> None:
        """Frees the features that the decoder would read."""
        self.encoding.close()

    def __enter__(self) -> Prepared:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Progress:
    """Where an image is that is upscaled alone."""

    stage: str
    """encode, denoise or decode"""
    step: int
    steps: int

"""What tests of pulling share: the names of the files, and what a pull left."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NAMES", "WHOLE", "Pauses", "left"]

NAMES = "stablesr_000117.ckpt", "vqgan_cfw_00011.ckpt"

WHOLE = ["stablesr-512/config.json", "stablesr-512/model.safetensors"]
"""What a pull leaves."""


class Pauses(list[float]):
    """Notes how long it was to wait, and does not."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def left(root: Path) -> list[str]:
    """Everything in the root, but for the lock."""
    return sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    )

"""What a client may choose as `preset`, with its defaults, limits and licence.

The networks behind a preset are described in `models.presets`, which names the same ones; here is
what the service must know without torch. Sources: StableSR (Wang et al., IJCV 2024) and its
released checkpoints; SD-Turbo (Sauer et al., 2023) for the four-step one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .errors import UnknownPreset

__all__ = ["MAX_CANVAS", "PRESETS", "Preset", "get_preset"]

MAX_CANVAS = 2**27
"""Most pixels of a canvas, `models.geometry`'s."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One set of weights as the service sees it.

    steps and fidelity_weight are defaults; native is the side, in pixels of the result, of the
    square the network was trained on (larger results are tiled); scale_max bounds `scale`;
    embedded says that the weights come with the package; prompts that weights of this preset can
    hold a text tower. Whether the worker's do depends on how they were converted: where they
    don't, the worker says so, and the job fails with that.
    """

    name: str
    title: str
    licence: str
    licence_url: str
    steps: int
    fidelity_weight: float = 0.5
    native: int = 512
    scale_max: float = 16.0
    embedded: bool = False
    prompts: bool = True

    def canvas(self, width: int, height: int, scale: float) -> tuple[int, int]:
        """(width, height) that an image of those sides is computed at: the result's, but with a
        shorter side of `native` at least."""
        grown = max(scale, self.native / min(width, height))
        return round(grown * width), round(grown * height)


_S_LAB = "S-Lab License 1.0 (non-commercial)"
_S_LAB_URL = "https://github.com/IceClear/StableSR/blob/main/LICENSE.txt"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="tiny",
                title="Tiny, in the package; runs on any CPU",
                licence="Apache-2.0",
                licence_url="https://www.apache.org/licenses/LICENSE-2.0",
                steps=1,
                embedded=True,
                prompts=False,
            ),
            Preset(
                name="stablesr-512",
                title="StableSR on Stable Diffusion 2.1, 512 pixels",
                licence=_S_LAB,
                licence_url=_S_LAB_URL,
                steps=200,
            ),
            Preset(
                name="stablesr-turbo",
                title="StableSR on SD-Turbo, four steps",
                licence=_S_LAB,
                licence_url=_S_LAB_URL,
                steps=4,
            ),
            Preset(
                name="stablesr-768v",
                title="StableSR on Stable Diffusion 2.1-v, 768 pixels",
                licence=_S_LAB,
                licence_url=_S_LAB_URL,
                steps=200,
                fidelity_weight=0.0,
                native=768,
            ),
            Preset(
                name="stablesr-face",
                title="StableSR for faces, 512 pixels",
                licence=_S_LAB,
                licence_url=_S_LAB_URL,
                steps=200,
            ),
        )
    }
)


def get_preset(name: str) -> Preset:
    """The preset of that name; raises UnknownPreset with the names there are."""
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(PRESETS)
        raise UnknownPreset(f"preset must be one of {known}; got {name!r}.") from None

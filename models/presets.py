"""The sets of weights there are, and how each one samples. Free of torch.

Sources: StableSR (Wang et al., IJCV 2024) and its released checkpoints; SD-Turbo (Sauer et al.,
2023) for the four-step one.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from models.config import Prediction
from models.errors import UnknownPreset

ColorFix = Literal["adain", "wavelet", "none"]


@dataclass(frozen=True)
class ReleasedFile:
    """A file as its authors published it."""

    name: str
    size: int
    """Bytes, known to three digits only."""
    sha256: str | None
    """None where none was published: such a file is checked by its structure only."""


@dataclass(frozen=True)
class Release:
    """What a preset's weights are made from: a repository of the Hugging Face hub, two files."""

    diffusion: ReleasedFile
    """UNet, time-aware encoder, first stage and text tower."""
    autoencoder: ReleasedFile
    """The autoencoder with controllable feature wrapping (CFW)."""
    prediction: Prediction = "epsilon"
    alternatives: tuple[ReleasedFile, ...] = ()
    """Other published forms of the diffusion file, to be converted but not pulled."""
    repository: str = "Iceclear/StableSR"

    @property
    def files(self) -> tuple[ReleasedFile, ReleasedFile]:
        return self.diffusion, self.autoencoder


@dataclass(frozen=True)
class Preset:
    """One set of weights: what a client may know of it, and how the pipeline samples with it."""

    name: str
    native: int = 512
    """Resolution the weights were trained at, px."""
    min_canvas_side: int = 512
    """The shorter side of every canvas at least, px."""
    tile: int = 64
    """Side of a UNet tile in latent pixels."""
    steps: int = 200
    """Default number of sampling steps."""
    fidelity_weight: float = 0.5
    """Default w."""
    color_fix: ColorFix = "adain"
    """Default colour correction: the paper's, unless another was measured to be better."""
    overlap: int = 32
    """Latent pixels by which tiles overlap in measurements: half a tile, as in the paper, unless
    less was measured to do."""
    title: str = ""
    licence: str = "S-Lab License 1.0 (non-commercial)"
    licence_url: str = "https://github.com/IceClear/StableSR/blob/main/LICENSE.txt"
    embedded: bool = False
    """Whether the weights are shipped in the package."""
    prompts: bool = True
    """Whether weights of this preset can hold a text tower; those converted without one do not,
    and their worker says so."""
    release: Release | None = None
    """Where the weights come from when they are not shipped."""


_CFW = ReleasedFile(
    "vqgan_cfw_00011.ckpt",
    960_000_000,
    "5b20ed9a80e9bdbf9e76ff1642a6a5428ca3427b08b779248a88bfbba2e74e8e",
)
_512 = Release(
    ReleasedFile(
        "stablesr_000117.ckpt",
        6_480_000_000,
        "b8862bf3fd11c5b8fe82fb8a4618a1c74a29e0301a190bd6c2e84d68986ef9cb",
    ),
    _CFW,
)
_TURBO = Release(
    ReleasedFile(
        "stablesr_turbo.ckpt",
        6_480_000_000,
        "3615aa00dcab2868042dcd1bba4979edbb6051e6e49c147cda6a2d550fb62c58",
    ),
    _CFW,
)
# There is no CFW trained for 768v; its decoder serves, and nothing is wrapped unless asked for.
_768V = Release(
    ReleasedFile(
        "stablesr_768v_000139.ckpt",
        6_480_000_000,
        "d5f83b544035b4bf24ab1d7aa86e0f83328e9ce121efb2c850f833178be3d10b",
    ),
    _CFW,
    prediction="v_prediction",
    alternatives=(
        ReleasedFile(
            "webui_768v_139.safetensors",
            422_106_016,
            "7ec86d64a1fc853a151edaa8b753e79141f79be5e6d6e0cb8905f905ac9a2bbc",
        ),
    ),
)
_FACE = Release(
    ReleasedFile(
        "face_stablesr_000050.ckpt",
        6_310_000_000,
        "ea839ea3e1eb99df7c95c7d7d17f282aa79052c74890deacb73e90c6d792b99c",
    ),
    ReleasedFile("face_vqgan_cfw_00011.ckpt", 960_000_000, None),
    prediction="v_prediction",
)

_PRESETS = (
    Preset(
        "tiny",
        # Its autoencoder has no norms over the image, so small images can keep their own size: much
        # sooner, degraded ones nearer to the original, clean ones less near (docs/performance.md).
        min_canvas_side=128,
        steps=1,
        color_fix="wavelet",
        overlap=8,
        title="Tiny, in the package; runs on any CPU",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        embedded=True,
        prompts=False,
    ),
    Preset("stablesr-512", title="StableSR on Stable Diffusion 2.1, 512 pixels", release=_512),
    Preset("stablesr-turbo", steps=4, title="StableSR on SD-Turbo, four steps", release=_TURBO),
    Preset(
        "stablesr-768v",
        native=768,
        min_canvas_side=768,
        tile=96,
        overlap=48,
        fidelity_weight=0.0,
        title="StableSR on Stable Diffusion 2.1-v, 768 pixels",
        release=_768V,
    ),
    Preset("stablesr-face", title="StableSR for faces, 512 pixels", release=_FACE),
)

PRESETS = MappingProxyType({p.name: p for p in _PRESETS})


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownPreset: with the names there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        names = ", ".join(PRESETS)
        raise UnknownPreset(f"The preset {name!r} is not one of {names}.") from None

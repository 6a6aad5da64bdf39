"""Compares the networks with golden figures: `python -m tests.parity [--fuse] [--cuda] [DIR]`.

DIR, by default `tests/golden`, is laid out like that folder: arrays, inputs and inventories;
weights and inputs are drawn by the rules of its README and enter the networks through the same
key mapping as the released files; --fuse fuses them for inference, --cuda computes on a GPU,
without TF32. Prints one line an array and exits 1 when any is above the tolerance.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.containers import Checkpoint, LazyTensor
from models.checkpoints.keys import SCHEDULE_KEYS, config_of, our_tensors, released_names
from models.color import correct_rows
from models.config import Prediction
from models.fusing import fuse
from models.networks.bundle import Networks
from models.presets import ColorFix
from models.sampling import Step, sample
from models.schedulers import DDIM, DDPM, Scheduler, add_noise, alphas_cumprod, respaced_timesteps
from models.tiling import TileGrid, gaussian_weights
from tests.models.driving import drive
from tests.models.released import idle_names

TOLERANCE = 2e-5
EQUAL_FRACTION = 0.995

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Comparison:
    """One array of the folder against ours."""

    name: str
    error: float
    """Relative L2 error; of 8-bit images the fraction of values that differ."""
    ok: bool
    note: str = ""


def _seeded(salt: str, name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"{salt}:{name}".encode()))


def draw_weight(salt: str, key: str, shape: list[int]) -> Tensor:
    """A tensor of the released layout by the folder's rule."""
    n = np.asarray(_seeded(salt, key).standard_normal(shape)).astype(np.float32)
    if not shape:
        n = np.full((), 4.6052, np.float32)
    elif len(shape) == 1:
        n = 1 + np.float32(0.1) * n if key.endswith("weight") else np.float32(0.05) * n
    elif "embedding" in key or key.endswith("text_projection"):
        n = np.float32(0.1) * n
    else:
        n = (0.9 * n / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return torch.from_numpy(np.asarray(n, np.float32))


class Golden:
    """A folder of golden figures and the networks that have to reproduce them."""

    def __init__(self, folder: Path, *, fused: bool = False, device: str = "cpu") -> None:
        self._fused, self._device = fused, device
        described = json.loads((folder / "inputs.json").read_text())
        self.salt: str = described["salt"]
        self.inputs: dict[str, tuple[str, list[int]]] = described["inputs"]
        with np.load(folder / "golden.npz") as arrays:
            self.arrays: dict[str, Array] = {name: arrays[name] for name in arrays.files}
        with gzip.open(folder / "keys_tiny.json.gz") as packed:
            self.inventory: dict[str, dict[str, list[int]]] = json.load(packed)

    def weight(self, name: str, shape: list[int]) -> LazyTensor:
        """A tensor of a released file, which is drawn when it is read."""
        return LazyTensor(torch.float32, tuple(shape), lambda: draw_weight(self.salt, name, shape))

    def input(self, name: str) -> Tensor:
        """A random input by the folder's rule, or a stored array."""
        if name not in self.inputs:
            return torch.from_numpy(np.asarray(self.arrays[name])).to(self._device)
        distribution, shape = self.inputs[name]
        random = _seeded(self.salt, name)
        if distribution == "uniform":
            drawn = random.uniform(-1, 1, shape)
        else:
            drawn = random.standard_normal(shape)
        return torch.from_numpy(np.asarray(drawn, np.float32)).to(self._device)

    @cached_property
    def networks(self) -> Networks:
        """The networks at the folder's widths, float32."""
        diffusion, autoencoder = self.inventory["state_dict"], self.inventory["cfw_state_dict"]
        config, shapes = config_of(diffusion, autoencoder), {**diffusion, **autoencoder}
        networks = Networks(config, first_stage="whole")
        names = shapes.keys() - SCHEDULE_KEYS - {*idle_names(config)}
        drawn = {name: self.weight(name, shapes[name]) for name in names}
        ours, file = networks.state_dict(), Checkpoint(Path("golden"), drawn)
        read = our_tensors(file, released_names(ours, config), ours, config.encoder.heads)
        for name, lazy in read.tensors.items():
            ours[name].copy_(lazy.read())
        networks.eval().requires_grad_(False).to(self._device)
        return fuse(networks) if self._fused else networks

    def predict(self, step: Step) -> Tensor:
        request = step.part(0, len(step))
        timesteps = [request.timestep] * len(request)
        return self.networks.predict(request.noisy, request.lr, timesteps, request.context)


Case = Callable[[Golden], Iterator[tuple[str, Tensor | Array]]]


def _networks(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    networks = golden.networks
    for shape in ("sq", "rect"):
        t = golden.input(f"encoder_{shape}_t")
        features = networks.encoder(golden.input(f"encoder_{shape}_latent"), t)
        for i, feature in enumerate(features):
            yield f"encoder_{shape}_feature{i}", feature[:, ::4]
        x, context = golden.input(f"unet_{shape}_x"), golden.input(f"unet_{shape}_context")
        yield f"unet_{shape}_out", networks.unet(x, t, context, features)


def _autoencoders(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    networks = golden.networks
    assert networks.first_stage is not None
    image, latent = golden.input("vae_image"), golden.input("cfw_latent")
    yield "first_stage_moments", networks.first_stage.encode(image).moments
    encoded = networks.autoencoder.encode(image)
    yield "vae_moments", encoded.moments
    yield "vae_feature_half", encoded.features[0][:, ::4]
    yield "vae_feature_quarter", encoded.features[1][:, ::4]
    for w in (0.0, 0.5, 1.0):
        decoded = networks.autoencoder.decode(latent, encoded.features, torch.tensor(w))
        yield f"cfw_decoded_w{w}", decoded


def _plain_decoder(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    """Of the diffusion file; converted weights lack it, because the method does not use it."""
    assert golden.networks.first_stage is not None
    yield "plain_decoded", golden.networks.first_stage.decode(golden.input("cfw_latent"))


def _text(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    assert golden.networks.text is not None
    yield "text_out", golden.networks.text(golden.input("text_tokens"))


def _schedule(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    for name in golden.arrays:
        if name.startswith("timesteps_"):
            yield name, np.asarray(respaced_timesteps(int(name.removeprefix("timesteps_"))))
        if name.endswith("_tile_weights"):
            height, width = golden.arrays[name].shape
            yield name, gaussian_weights(height, width)
    yield "alphas_cumprod", alphas_cumprod()
    steps = DDIM(len(golden.arrays["ddim_timesteps_default"]))
    yield "ddim_timesteps_default", np.asarray(steps.timesteps[::-1])
    # Both in ascending order of timestep.
    yield "ddim_alphas", alphas_cumprod()[steps.timesteps[::-1]]
    yield "ddim_sigmas", np.asarray([steps.sigma(i) for i in range(len(steps.timesteps))][::-1])


def _ddpm(golden: Golden, name: str, scheduler: Scheduler) -> Iterator[tuple[str, Tensor]]:
    _, tile, overlap = (int(v) for v in golden.arrays[f"{name}_meta"])
    lr = golden.input(f"{name}_lr_latent")
    start = add_noise(lr, golden.input(f"{name}_init_noise"), scheduler.timesteps[0])
    fresh = iter(golden.input(f"{name}_step_noise"))
    grid = TileGrid(lr.shape[2], lr.shape[3], tile, overlap)
    context = golden.input(f"{name}_context")
    sampler = sample(start, lr, scheduler, grid, lambda: next(fresh), context)
    first = next(sampler)
    joined = grid.join(golden.predict(first))
    noise = golden.input(f"{name}_step_noise")[0]
    yield f"{name}_after_first_step", scheduler.step(0, start, joined, noise)
    sampler.close()
    fresh = iter(golden.input(f"{name}_step_noise"))
    sampler = sample(start, lr, scheduler, grid, lambda: next(fresh), context)
    yield f"{name}_out", drive(sampler, golden.predict)


def _samplers(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    for meta in [n for n in golden.arrays if n.startswith("ddpm") and n.endswith("_meta")]:
        name = meta.removesuffix("_meta")
        steps = int(golden.arrays[meta][0])
        kind: Prediction = "v_prediction" if name.endswith("_v") else "epsilon"
        yield from _ddpm(golden, name, DDPM(steps, kind))
    lr = golden.input("ddim5_lr_latent")
    fresh = iter(golden.input("ddim5_step_noise"))
    sampler = sample(
        golden.input("ddim5_x_T"),
        lr,
        DDIM(len(golden.arrays["ddim_timesteps_default"])),
        TileGrid(lr.shape[2], lr.shape[3], 64, 32),
        lambda: next(fresh),
        golden.input("ddim5_context"),
        golden.input("ddim5_negative_context"),
        float(golden.arrays["ddim5_guidance"]),
    )
    yield "ddim5_out", drive(sampler, golden.predict)


def _colors(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    content = golden.input("color_content")
    reference = 0.5 * golden.input("color_style") - 0.2
    yield "color_adain", _corrected(content, reference, "adain")
    yield "color_wavelet", _corrected(content, reference, "wavelet")


def _corrected(image: Tensor, reference: Tensor, fix: ColorFix) -> Tensor:
    rows = (
        correct_rows(*pair, fix, image.shape[2])
        for pair in zip(image[:, None], reference[:, None], strict=True)
    )
    return torch.cat([strip for strips in rows for strip in strips])


def _image(golden: Golden) -> Iterator[tuple[str, Tensor | Array]]:
    networks = golden.networks
    assert networks.first_stage is not None
    lr_image = golden.input("image_lr").permute(2, 0, 1)[None].float() / 255
    up = F.interpolate(lr_image, scale_factor=4, mode="bicubic").clamp(0, 1) * 2 - 1
    latent = networks.first_stage.latent(networks.first_stage.encode(up).moments)
    yield "image_latent", latent
    scheduler = DDPM(4)
    fresh = iter(golden.input("image_step_noise"))
    sampler = sample(
        add_noise(latent, golden.input("image_init_noise"), scheduler.timesteps[0]),
        latent,
        scheduler,
        TileGrid(latent.shape[2], latent.shape[3], 64, 32),
        lambda: next(fresh),
        golden.input("image_context"),
    )
    sampled = drive(sampler, golden.predict)
    yield "image_sampled_latent", sampled
    w = torch.tensor(float(golden.arrays["image_fidelity"]))
    features = networks.autoencoder.encode(up).features
    decoded = networks.autoencoder.decode(networks.autoencoder.unscale(sampled), features, w)
    fixes: tuple[ColorFix, ...] = ("adain", "wavelet")
    for fix in fixes:
        image = (_corrected(decoded, up, fix)[0].permute(1, 2, 0) + 1) / 2
        yield f"image_sr_{fix}", (image.clamp(0, 1) * 255).to(torch.uint8)


FUSED_CASES: tuple[Case, ...] = (_networks, _autoencoders, _plain_decoder)
"""Those that ask the networks whose layers fuses replace, once."""
QUICK: tuple[Case, ...] = (_schedule, *FUSED_CASES, _text, _colors)
"""Those that take seconds: each network asked once."""
CASES: tuple[Case, ...] = (*QUICK, _samplers, _image)


def compare(name: str, ours: Tensor | Array, golden: Array) -> Comparison:
    """Relative L2 error, or for 8-bit images the rule of one level and 99.5 %."""
    got = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else ours
    if got.shape != golden.shape:
        return Comparison(name, float("inf"), False, f"shape {got.shape}, not {golden.shape}")
    difference = got.astype(np.float64) - golden.astype(np.float64)
    if golden.dtype == np.uint8:
        differing = float((difference != 0).mean())
        worst = int(np.abs(difference).max())
        ok = worst <= 1 and differing <= 1 - EQUAL_FRACTION
        return Comparison(name, differing, ok, f"of values differ, by at most {worst}")
    norm = float(np.linalg.norm(golden.astype(np.float64)))
    error = float(np.linalg.norm(difference)) / (norm or 1.0)
    return Comparison(name, error, error <= TOLERANCE)


@torch.inference_mode()
def comparisons(golden: Golden, cases: Sequence[Case] = CASES) -> Iterator[Comparison]:
    """Every array of the folder that is an answer, in the order they are computed.

    `cases`: only these.
    """
    answered = set()
    for case in cases:
        for name, ours in case(golden):
            answered.add(name)
            yield compare(name, ours, golden.arrays[name])
    if cases is not CASES:
        return
    for name in sorted(golden.arrays.keys() - answered):
        if not name.endswith(("_t", "_meta", "_guidance", "_tokens", "_lr", "_fidelity")):
            yield Comparison(name, float("inf"), False, "no case computes this array")


def main(arguments: list[str]) -> int:
    fused, device = "--fuse" in arguments, "cuda" if "--cuda" in arguments else "cpu"
    # Convolutions would otherwise read 10 bits of each number.
    torch.backends.cudnn.allow_tf32 = False
    arguments = [argument for argument in arguments if argument not in ("--fuse", "--cuda")]
    folder = Path(arguments[0]) if arguments else Path(__file__).parent / "golden"
    if len(arguments) > 1 or not (folder / "golden.npz").is_file():
        print(
            f"usage: python -m tests.parity [--fuse] [--cuda] [DIR], and {folder} must hold "
            "golden.npz (see tests/golden/README.md).",
            file=sys.stderr,
        )
        return 2
    failed = 0
    for c in comparisons(Golden(folder, fused=fused, device=device)):
        failed += not c.ok
        print(f"{'ok  ' if c.ok else 'FAIL'} {c.name:32} {c.error:.2e} {c.note}".rstrip())
    print(f"{failed} arrays above the tolerance" if failed else "every array within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The whole way of an image: upsample, encode, sample, decode, correct, crop.

The stages are separate calls, because in the worker they run beside those of other jobs;
`StableSR.upscale` does all of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.folder import load_folder, preset_folder, random_networks
from models.color import correct_color
from models.config import ModelConfig
from models.diffusion import add_noise, make_stepper
from models.errors import InvalidOption
from models.networks.autoencoder import Taps
from models.networks.bundle import Networks
from models.options import Options
from models.presets import Preset, get_preset
from models.sampling import Sampler, StepRequest, drive, sample
from models.tiling import TileGrid

__all__ = ["Prepared", "Progress", "StableSR", "output_size"]

# Far beyond what is sensible: keeps a strip of one pixel's width from asking for terabytes.
MAX_CANVAS = 2**27


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of the result in px: `round(scale * side)`, at least 1 since scale is."""
    return round(scale * height), round(scale * width)


@dataclass(frozen=True)
class Progress:
    """Where an image is."""

    stage: str
    """encode, denoise or decode"""
    step: int
    steps: int


@dataclass(frozen=True)
class Prepared:
    """An image ready to be sampled."""

    size: tuple[int, int]
    """Height and width of the result, px."""
    canvas: tuple[int, int]
    """Height and width of the upsampled image before padding, px."""
    reference: Tensor
    """The upsampled, padded image in [-1, 1], (1, 3, H, W)."""
    latent: Tensor
    """Its scaled latent, float32 (1, c, H/8, W/8)."""
    taps: Taps


class StableSR:
    """A loaded set of weights. Its methods hold no state between calls; several threads may
    call them."""

    def __init__(
        self, networks: Networks, preset: Preset, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.networks, self.preset, self.device, self.dtype = networks, preset, device, dtype

    @classmethod
    def from_preset(
        cls,
        name: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableSR:
        """Loads a preset's weights.

        Raises:
            UnknownPreset: no preset has that name.
            WeightsNotFound: its weights are not on this machine.
        """
        preset = get_preset(name)
        return cls.from_folder(preset_folder(preset), preset, device, dtype)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        preset: Preset,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableSR:
        """Loads weights from a folder; the preset says how to sample with them."""
        device = torch.device(device)
        return cls(load_folder(folder, device, dtype), preset, device, dtype)

    @classmethod
    def with_random_weights(
        cls,
        config: ModelConfig,
        preset: Preset,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableSR:
        """Full-size networks without a checkpoint, for benchmarks."""
        device = torch.device(device)
        return cls(random_networks(config, device, dtype), preset, device, dtype)

    def canvas_size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Sides of the upsampled image: at least the native resolution on the shorter side."""
        grown = max(scale, self.preset.native / min(height, width))
        return output_size(height, width, grown)

    @torch.inference_mode()
    def prepare(self, image: Tensor, options: Options) -> Prepared:
        """Upsamples, pads and encodes an image.

        Args:
            image: (1, 3, H, W), RGB in [0, 1].
            options: of this image.

        Raises:
            InvalidOption: the image has another shape, or needs too large a canvas.
        """
        if image.ndim != 4 or image.shape[0] != 1 or image.shape[1] != 3:
            raise InvalidOption(
                f"The image has shape {tuple(image.shape)}, but must have (1, 3, height, width)."
            )
        height, width = image.shape[2:]
        canvas = self.canvas_size(height, width, options.scale)
        if canvas[0] * canvas[1] > MAX_CANVAS:
            raise InvalidOption(
                f"The image of {width} x {height} pixels at scale {options.scale:g} needs a canvas "
                f"of {canvas[1]} x {canvas[0]} pixels, because its shorter side is enlarged to "
                f"{self.preset.native} at least; at most {MAX_CANVAS} pixels are possible."
            )
        reference = F.interpolate(
            image.to(self.device, torch.float32), size=canvas, mode="bicubic", align_corners=False
        )
        reference = reference.clamp(0, 1) * 2 - 1
        multiple = self.networks.config.autoencoder.downscale
        down, right = -canvas[0] % multiple, -canvas[1] % multiple
        reference = F.pad(reference, (0, right, 0, down), mode="reflect")

        pixels = reference.to(self.dtype)
        encoded = self.networks.autoencoder.encode(pixels)
        if self.networks.first_stage is not None:
            # The taps come from the CFW file's encoder, the latent from the diffusion file's.
            moments = self.networks.first_stage.encode(pixels).moments
        else:
            moments = encoded.moments
        latent = self.networks.autoencoder.latent(moments.float())
        size = output_size(height, width, options.scale)
        return Prepared(size, canvas, reference, latent, encoded.taps)

    def sample(self, prepared: Prepared, options: Options) -> Sampler:
        """The generator that denoises a prepared image: see `models.sampling`.

        Noise is drawn on the host from one generator, in order, so it depends on the seed and
        the canvas alone.

        Raises:
            InvalidOption: steps, sampler or overlap outside their ranges; at once, not at the
                first step.
        """
        preset = self.preset
        stepper = make_stepper(
            options.sampler,
            preset.steps if options.steps is None else options.steps,
            self.networks.config.prediction,
        )
        overlap = options.tile_overlap
        if overlap is None:
            overlap = preset.tile // 2
        latent = prepared.latent
        grid = TileGrid(latent.shape[2], latent.shape[3], preset.tile, overlap)
        generator = torch.Generator().manual_seed(options.seed)

        def noise() -> Tensor:
            return torch.randn(latent.shape, generator=generator).to(latent.device)

        start = add_noise(latent, noise(), stepper.timesteps[0])
        return sample(start, latent, stepper, grid, noise, self.networks.context.float())

    @torch.inference_mode()
    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One network call for tiles of any number of jobs, each at its own timestep.

        All tiles must have one shape. Returns float32 predictions, one tensor a request.
        """
        timesteps = [r.timestep for r in requests for _ in range(len(r))]
        out = self.networks.predict(
            torch.cat([r.noisy for r in requests]).to(self.dtype),
            torch.cat([r.lr for r in requests]).to(self.dtype),
            timesteps,
            torch.cat([r.context for r in requests]).to(self.dtype),
        ).float()
        return list(torch.split(out, [len(r) for r in requests]))

    @torch.inference_mode()
    def decode(self, prepared: Prepared, latent: Tensor, options: Options) -> Tensor:
        """Decodes a sampled latent to the result (1, 3, H, W), float32 in [0, 1], on the host."""
        networks = self.networks
        unscaled = latent.to(self.device, self.dtype) / networks.config.autoencoder.scaling_factor
        w = torch.tensor(options.fidelity_weight, device=self.device, dtype=self.dtype)
        wrapped = options.fidelity_weight > 0
        image = networks.autoencoder.decode(unscaled, prepared.taps if wrapped else None, w)
        image = correct_color(image.float(), prepared.reference, options.color_fix)
        image = (image[:, :, : prepared.canvas[0], : prepared.canvas[1]] + 1) / 2
        if prepared.canvas != prepared.size:
            image = F.interpolate(
                image, size=prepared.size, mode="bicubic", align_corners=False, antialias=True
            )
        return image.clamp(0, 1).cpu()

    def upscale(
        self,
        image: Tensor,
        options: Options | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Tensor:
        """All of it, alone: (1, 3, H, W) in [0, 1] -> (1, 3, scale * H, scale * W)."""
        options = options or Options()
        tell = progress or (lambda _: None)
        tell(Progress("encode", 0, 1))
        prepared = self.prepare(image, options)

        def predict(request: StepRequest) -> Tensor:
            tell(Progress("denoise", request.step, request.steps))
            return self.predict([request])[0]

        latent = drive(self.sample(prepared, options), predict)
        tell(Progress("decode", 0, 1))
        return self.decode(prepared, latent, options)

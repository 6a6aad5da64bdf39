"""An image's way through StableSR: enlarge, encode, sample, decode, correct, reduce.

The stages are separate calls, because in the worker they run beside those of other jobs;
`StableSR.upscale` does all of them alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.files import preset_folder
from models.checkpoints.folder import load_folder, open_folder, random_networks
from models.color import check_finite, enlarge, join_rows, result_rows
from models.compiler import CompileOptions
from models.config import CompactConfig, ModelConfig
from models.data_parallel import DataParallel
from models.denoiser import Denoiser, TileBatch
from models.errors import InvalidOption
from models.fusing import for_inference
from models.geometry import output_size
from models.grain import add_grain
from models.layout import Layout
from models.memory import Fallbacks, MemoryBudget, is_out_of_memory, room_to_grow, trim
from models.networks.bundle import Networks
from models.networks.compact import fused_share
from models.offload import Offload, Part
from models.parameters import UpscaleParameters, preset_parameters
from models.plan import EncodedImage, Planner, is_small
from models.presets import Preset, get_preset
from models.prompts import check_prompts, contexts
from models.sampling import Sampler, StepRequest, drive_all, sample_image
from models.vae import Vae

log = logging.getLogger(__name__)

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class Progress:
    """Where an image is that is upscaled alone."""

    stage: str
    """encode, denoise or decode"""
    step: int
    steps: int


class StableSR:
    """A loaded set of weights; several threads may call its methods, which hold no state between.

    The networks are in evaluation mode, and on the device, or on the host if the budget says
    offload; undecided it is off. The preset says how to sample with them, the dtype is that of
    their weights. Nothing is compiled by default.
    """

    def __init__(
        self,
        networks: Networks,
        preset: Preset,
        device: torch.device,
        dtype: torch.dtype,
        budget: MemoryBudget | None = None,
        compiling: CompileOptions | None = None,
    ) -> None:
        self.networks, self.preset, self.device, self.dtype = networks, preset, device, dtype
        budget, compiling = budget or MemoryBudget(), compiling or CompileOptions()
        tile_batch = compiling.fixed_batch or budget.tile_batch
        budget = replace(budget, offload=bool(budget.offload), tile_batch=tile_batch)
        self.planner = Planner(networks, preset, dtype, device, budget)
        self.offload = offload = bool(budget.offload)
        """Whether autoencoder and denoiser take turns on the device."""
        self.fallbacks = Fallbacks()
        """Since it was loaded"""
        denoiser = Denoiser(networks, device, compiling, self.fallbacks, offload=offload)
        self.denoiser: Denoiser | DataParallel = denoiser
        """May be exchanged before the first image"""
        calls, side = denoiser.compiled_calls, preset.native
        self._vae = Vae(networks, device, self.fallbacks, calls, compiling, side, offload=offload)
        # Last: it notes where the weights lie.
        self._parts = Offload(networks, device) if offload else None

    @classmethod
    def from_preset(
        cls,
        name: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        budget: MemoryBudget | None = None,
        *,
        fuse: bool = True,
        compiling: CompileOptions | None = None,
    ) -> StableSR:
        """`load` with the weights of the preset of that name; raises UnknownPreset too."""
        preset = get_preset(name)
        folder = preset_folder(preset)
        return cls.load(folder, preset, device, dtype, budget, fuse=fuse, compiling=compiling)

    @classmethod
    def load(
        cls,
        source: Path | ModelConfig,
        preset: Preset,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        budget: MemoryBudget | None = None,
        *,
        fuse: bool = True,
        compiling: CompileOptions | None = None,
    ) -> StableSR:
        """Weights from a folder, or random ones of a configuration, fused for inference by
        default; the preset says how to sample with them.

        Raises:
            WeightsNotFound, CheckpointError: the folder has no weights, or others than it says.
        """
        device, budget = torch.device(device), budget or MemoryBudget()
        if budget.offload is None and isinstance(source, Path):
            empty, _ = open_folder(source)
            planner = Planner(empty, preset, dtype, device, budget)
            budget = replace(budget, offload=planner.needs_offload(budget.free(device)))
        place = _HOST if budget.offload else device
        if isinstance(source, Path):
            networks = load_folder(source, place, dtype)
        else:
            networks = random_networks(source, place, dtype)
        if fuse:
            for_inference(networks, device, dtype, lambda: room_to_grow(budget.free(_HOST).host))
        return cls(networks, preset, device, dtype, budget, compiling)

    @property
    def tile_batch(self) -> int:
        """Tiles that one network call has room for, whatever images they are of."""
        with self.on_device("autoencoder"):
            return self.denoiser.room(self.planner.tile_batch)

    def compile(self, on_progress: Callable[[int, int], None] = lambda index, total: None) -> None:
        """Compiles calls of every size before the first image, and calls `on_progress` before each
        with how many are ready, of how many. What memory has no room for is compiled when it is
        first needed, if it fits by then."""
        steps = self.denoiser.compilations(self.tile_batch, self.preset.tile)
        steps += self._vae.compilations()
        for index, step in enumerate(steps):
            on_progress(index, len(steps))
            try:
                step()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("not compiled yet, because memory ran out: %s", error)

    def on_device(self, part: Part) -> AbstractContextManager[None]:
        """Within, the part's networks are on the device."""
        return self._parts.on_device(part) if self._parts else nullcontext()

    def steps_in(self, image: Tensor, options: UpscaleParameters) -> bool:
        """Whether an image (1, 3, H, W) is small enough to be prepared and decoded between the
        strips of a larger one, where `on_progress` is called. None is with offload, where the
        larger one keeps its networks on the device. Raises InvalidOption as `prepare`."""
        sides = image.shape[2], image.shape[3]
        layout = Layout.of(sides, options, self.preset, self.networks.config)
        layout.check_canvas()
        return not self.offload and is_small(layout.canvas, self.preset)

    @torch.inference_mode()
    def prepare(
        self,
        image: Tensor,
        options: UpscaleParameters,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> EncodedImage:
        """Enlarges, pads and encodes an image (1, 3, H, W), RGB in [0, 1], planned with what is
        free now. `on_progress` is called between two strips with the finished part, 0 to 1; what it
        raises ends the work.

        Raises:
            InvalidOption: the image has another shape, or needs too large a canvas.
            NotEnoughMemory: not even the smallest plan fits.
            ScratchFull: the disk for feature maps has no room.
            MissingTextTower: there is a prompt, and the weights hold no text tower.
        """
        check_prompts(self.networks, options, self.preset.name)
        if image.ndim != 4 or image.shape[0] != 1 or image.shape[1] != 3:
            raise InvalidOption(
                f"The image has shape {tuple(image.shape)}, but must have (1, 3, height, width)."
            )
        with self.on_device("autoencoder"):
            plan = self.planner.plan(image.shape[2], image.shape[3], options)
            reference = enlarge(image, plan.layout.canvas, plan.layout.padded)
            fusion = options.fidelity_weight > 0
            latent, encoding, strips = self._vae.encode(
                reference, plan.strips, features=fusion, on_progress=on_progress
            )
        trim()
        return EncodedImage(replace(plan, strips=strips), reference, latent, encoding)

    def sample(self, encoded_image: EncodedImage, options: UpscaleParameters) -> Sampler:
        """The generator that denoises an image: see `models.sampling`.

        Raises, at once and not at the first step:
            InvalidOption: steps, sampler or overlap outside their ranges.
            MissingTextTower: there is a prompt, and the weights hold no text tower.
        """
        networks, preset, latent = self.networks, self.preset, encoded_image.latent
        # The networks know the empty prompt's context.
        prompt = options.prompt or options.guidance_scale != 1
        pair = contexts(networks, options, preset.name, latent.device) if prompt else (None, None)
        return sample_image(latent, networks.config, preset, options, *pair)

    @torch.inference_mode()
    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One network call for tiles of any number of jobs, all of one shape and each at its own
        timestep. Returns float32 predictions, one (n, c, h, w) a request."""
        tiles = TileBatch.of(requests, self.networks.context)
        with self.on_device("denoiser"):
            out = self.denoiser.denoise(tiles)
        return list(torch.split(out, [len(request) for request in requests]))

    def rows(
        self,
        encoded_image: EncodedImage,
        latent: Tensor,
        options: UpscaleParameters,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> Iterator[Tensor]:
        """Decodes the latent of `sample` at once, and hands the result out as rows, top to bottom:
        each (3, n, W), float32 in [0, 1], on the host. The other arguments are as of `prepare`.

        Raises:
            ScratchFull: the disk for feature maps has no room.
            NotFinite: the networks did not give numbers.
        """
        check_finite(latent, "sampled latent", self.dtype)
        trim()
        with torch.inference_mode():
            with self.on_device("autoencoder"):
                image = self._vae.decode(
                    latent,
                    encoded_image.encoding.features,
                    options.fidelity_weight,
                    self.planner.strips_now(encoded_image, options),
                    on_progress=on_progress,
                )
            trim()
        check_finite(image, "decoded image", self.dtype)
        config, fidelity = self.networks.config, options.fidelity_weight
        add_grain(image, config.grain, options.seed, 1 - fidelity)
        layout, reference = encoded_image.plan.layout, encoded_image.reference
        # The compact fusion's colours are the input's, less its noise: only what was sampled has
        # others.
        share = 1.0
        if isinstance(config.autoencoder, CompactConfig):
            share -= fused_share(fidelity) ** 2
        return result_rows(image, reference, layout, options.color_fix, share)

    def decode(
        self, encoded_image: EncodedImage, latent: Tensor, options: UpscaleParameters
    ) -> Tensor:
        """`rows`, joined: (1, 3, H, W)."""
        return join_rows(self.rows(encoded_image, latent, options), encoded_image.plan.layout.size)

    def upscale(
        self,
        image: Tensor,
        options: UpscaleParameters | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Tensor:
        """All of it, alone: (1, 3, H, W) in [0, 1] -> (1, 3, scale * H, scale * W)."""
        options = options or preset_parameters(self.preset)
        [rows] = self.upscale_rows(image, options, [options.seed], on_progress)
        return join_rows(rows, output_size(image.shape[2], image.shape[3], options.scale))

    def upscale_rows(
        self,
        image: Tensor,
        options: UpscaleParameters,
        seeds: Sequence[int],
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Iterator[Iterator[Tensor]]:
        """One image from several seeds: each result as `rows` gives it, in the seeds' order. The
        image is encoded once, the seeds' tiles share network calls, and each result is decoded when
        it is asked for."""
        on_progress(Progress("encode", 0, 1))
        with self.prepare(image, options) as encoded_image:
            step = -1

            def predict(requests: Sequence[StepRequest]) -> list[Tensor]:
                nonlocal step
                if requests[0].step > step:
                    step = requests[0].step
                    on_progress(Progress("denoise", step, requests[0].steps))
                return self.predict(requests)

            room = self.denoiser.room(encoded_image.plan.tile_batch)
            each = [options.model_copy(update={"seed": seed}) for seed in seeds]
            samplers = [self.sample(encoded_image, options) for options in each]
            latents = drive_all(samplers, predict, max_tiles=room)
            for options, latent in zip(each, latents, strict=True):
                on_progress(Progress("decode", 0, 1))
                yield self.rows(encoded_image, latent, options)

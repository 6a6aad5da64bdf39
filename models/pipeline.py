"""The whole way of an image: upsample, encode, sample, decode, correct, crop.

The stages are separate calls, because in the worker they run beside those of other jobs;
`StableSR.upscale` does all of them alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.autoencoding import AutoencoderAtWork, Changes
from models.checkpoints.folder import load_folder, open_folder, preset_folder, random_networks
from models.compiler import CompileOptions
from models.config import ModelConfig
from models.data_parallel import DataParallel
from models.denoiser import Denoiser
from models.diffusion import TRAINING_STEPS, add_noise, make_stepper
from models.errors import InvalidOption
from models.estimate import Estimate
from models.finishing import check_finite, finished_rows, joined
from models.folding import for_inference
from models.geometry import output_size
from models.memory import is_out_of_memory, room_to_grow, trim
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters, preset_parameters
from models.plan import Plan, Planner, Resources, needs_offload, steps_in
from models.prepared import Prepared, Progress
from models.presets import Preset, get_preset
from models.prompts.contexts import check_prompts, contexts
from models.residency import Offloaded, Residency, Resident
from models.resize import upsampled
from models.sampling import Sampler, StepRequest, drive_all, sample
from models.tiling import TileGrid
from models.whole import Whole

__all__ = ["Prepared", "Progress", "StableSR", "output_size"]

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")


def _silent(fraction: float) -> None:
    pass


class StableSR:
    """A loaded set of weights. Its methods hold no state between calls; several threads may
    call them.

    Args:
        networks: in evaluation mode; on `device`, or on the host if `resources` say offload.
        preset: how to sample with them.
        device: where they compute.
        dtype: of their weights.
        resources: what the host gives; without `offload` decided, there is none.
        compiling: of network calls; none, if not given.
    """

    def __init__(
        self,
        networks: Networks,
        preset: Preset,
        device: torch.device,
        dtype: torch.dtype,
        resources: Resources | None = None,
        compiling: CompileOptions | None = None,
    ) -> None:
        self.networks, self.preset, self.device, self.dtype = networks, preset, device, dtype
        given = resources or Resources()
        offload = bool(given.offload)
        self.changes = Changes()
        """Of plans, because memory ran out."""
        # Before the residency, which notes where the weights lie.
        compiling = compiling or CompileOptions()
        denoiser = Denoiser(networks, device, compiling, self.changes, offloaded=offload)
        self._whole = Whole(
            networks,
            device,
            denoiser.compiled_calls,
            compiling,
            preset.native,
            offloaded=offload,
        )
        self.denoiser: Denoiser | DataParallel = denoiser
        """May be exchanged before the first image"""
        self._autoencoder = AutoencoderAtWork(networks, device, dtype, self.changes, self._whole)
        self.residency: Residency = Offloaded(networks, device) if offload else Resident()
        estimate = Estimate.of(networks, dtype, device)
        self.planner = Planner(
            estimate,
            preset,
            replace(given, offload=offload),
            lambda: self.residency.held(estimate.weights),
            lambda tiles: self.denoiser.room(tiles),
        )

    @classmethod
    def from_preset(
        cls,
        name: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        resources: Resources | None = None,
        *,
        fold: bool = True,
        compiling: CompileOptions | None = None,
    ) -> StableSR:
        """Loads a preset's weights, and folds them for inference unless told not to.

        Raises:
            UnknownPreset: no preset has that name.
            WeightsNotFound: its weights are not on this machine.
        """
        preset = get_preset(name)
        folder = preset_folder(preset)
        return cls.from_folder(
            folder, preset, device, dtype, resources, fold=fold, compiling=compiling
        )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        preset: Preset,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        resources: Resources | None = None,
        *,
        fold: bool = True,
        compiling: CompileOptions | None = None,
    ) -> StableSR:
        """Loads weights from a folder; the preset says how to sample with them."""
        device = torch.device(device)
        given = resources or Resources()
        if given.offload is None:
            empty, _ = open_folder(folder)
            estimate = Estimate.of(empty, dtype, device)
            given = replace(given, offload=needs_offload(estimate, given.free(device)))
        place = torch.device("cpu") if given.offload else device
        networks = load_folder(folder, place, dtype)
        if fold:
            for_inference(networks, device, dtype, lambda: room_to_grow(given.free(_CPU).host))
        return cls(networks, preset, device, dtype, given, compiling)

    @classmethod
    def with_random_weights(
        cls,
        config: ModelConfig,
        preset: Preset,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        resources: Resources | None = None,
        *,
        fold: bool = True,
        compiling: CompileOptions | None = None,
    ) -> StableSR:
        """Full-size networks without a checkpoint, for benchmarks."""
        device = torch.device(device)
        place = torch.device("cpu") if resources and resources.offload else device
        networks = random_networks(config, place, dtype)
        if fold:
            free = (resources or Resources()).free(_CPU)
            for_inference(networks, device, dtype, lambda: room_to_grow(free.host))
        return cls(networks, preset, device, dtype, resources, compiling)

    def plan(self, height: int, width: int, options: UpscaleParameters) -> Plan:
        """How an image of these sides (px) would go now, with what memory is free now.

        Raises:
            InvalidOption: no canvas or no tiles can be made for it.
            NotEnoughMemory: nothing fits.
        """
        return self.planner.plan(height, width, options)

    @property
    def tile_batch(self) -> int:
        """Tiles that one network call has room for, whatever images they are of."""
        return self.planner.tile_batch

    @property
    def departures(self) -> Mapping[str, int]:
        """How often it has gone another way than planned since it was loaded, by what: tile_batch,
        rows, keep or image, because memory ran out; a call computed eagerly, eager_offload,
        eager_prompt or eager_failure."""
        calls = self.denoiser.eager_calls + self._whole.eager_calls
        eager = {f"eager_{why}": n for why, n in calls.items()}
        return {**self.changes.counts, **eager}

    @property
    def offload(self) -> bool:
        """Whether autoencoder and denoiser take turns on the device."""
        return bool(self.planner.resources.offload)

    def compile(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compiles calls of every size, if any are to be, before the first image.

        `on_progress` is called before each with how many are ready, of how many in total. What
        memory has no room for is compiled when it is first needed, if it fits by then.
        """
        steps = [
            *self.denoiser.compilations(self.tile_batch, self.preset.tile),
            *self._whole.compilations(),
        ]
        for done, step in enumerate(steps):
            on_progress(done, len(steps))
            try:
                step()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("not compiled yet, because memory ran out: %s", error)

    def steps_in(self, image: Tensor, options: UpscaleParameters) -> bool:
        """Whether an image (1, 3, H, W) is small enough to be prepared and decoded between the
        strips of a larger one, where `tell` is called.

        None is where networks take turns on the device: the larger one keeps its own there, and
        who waits for others to be brought is let in first.

        Raises:
            InvalidOption: the canvas would be too large.
        """
        if self.offload:
            return False
        return steps_in(image.shape[2], image.shape[3], options, self.preset)

    @torch.inference_mode()
    def prepare(
        self, image: Tensor, options: UpscaleParameters, tell: Callable[[float], None] = _silent
    ) -> Prepared:
        """Upsamples, pads and encodes an image. The plan is made here, with what is free now.

        Args:
            image: (1, 3, H, W), RGB in [0, 1].
            options: of this image.
            tell: hears the fraction that is done, between two strips; what it raises ends the
                work.

        Raises:
            InvalidOption: the image has another shape, or needs too large a canvas.
            NotEnoughMemory: not even the smallest plan fits.
            ScratchFull: the disk for feature maps has no room left.
            MissingTextTower: there is a prompt, and the weights hold no text tower.
        """
        check_prompts(self.networks, options, self.preset.name)
        if image.ndim != 4 or image.shape[0] != 1 or image.shape[1] != 3:
            raise InvalidOption(
                f"The image has shape {tuple(image.shape)}, but must have (1, 3, height, width)."
            )
        with self.residency.holding("autoencoder"):
            chosen = self.plan(image.shape[2], image.shape[3], options)
            layout = chosen.layout
            reference = upsampled(image, layout.canvas, layout.padded)
            fusion = options.fidelity_weight > 0
            encoding = self._autoencoder.encode(
                reference, chosen.pieces, features=fusion, tell=tell
            )
        trim()
        return Prepared(chosen, reference, encoding)

    def sample(self, prepared: Prepared, options: UpscaleParameters) -> Sampler:
        """The generator that denoises a prepared image: see `models.sampling`.

        Noise is drawn on the host from one generator, in order, so it depends on the seed and
        the canvas alone.

        Raises:
            InvalidOption: steps, sampler or overlap outside their ranges; at once, not at the
                first step.
            MissingTextTower: there is a prompt, and the weights hold no text tower; at once too.
        """
        preset, config = self.preset, self.networks.config
        # What weights were distilled to is of DDPM from the LR latent alone.
        distilled = options.sampler == "ddpm" and options.start == "lr"
        stepper = make_stepper(
            options.sampler,
            options.steps,
            config.prediction,
            options.eta,
            config.first_timestep if distilled else TRAINING_STEPS - 1,
        )
        latent = prepared.latent
        grid = TileGrid(latent.shape[2], latent.shape[3], preset.tile, options.tile_overlap)
        generator = torch.Generator().manual_seed(options.seed)

        def noise() -> Tensor:
            return torch.randn(latent.shape, generator=generator).to(latent.device)

        start = noise()
        if distilled and not config.noised_start:
            start = latent
        elif options.start == "lr":
            start = add_noise(latent, start, stepper.timesteps[0])
        scale = options.guidance_scale
        wanted: Tensor | None = None
        unwanted: Tensor | None = None
        # The networks know the empty prompt's context.
        if options.prompt or scale != 1:
            wanted, unwanted = contexts(self.networks, options, preset.name, latent.device)
        return sample(start, latent, stepper, grid, noise, wanted, unwanted, scale)

    @torch.inference_mode()
    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        """One network call for tiles of any number of jobs, each at its own timestep.

        All tiles must have one shape. Returns float32 predictions, one tensor a request.
        """
        with self.residency.holding("denoiser"):
            return self.denoiser.predict(requests)

    def rows(
        self,
        prepared: Prepared,
        latent: Tensor,
        options: UpscaleParameters,
        tell: Callable[[float], None] = _silent,
    ) -> Iterator[Tensor]:
        """Decodes a sampled latent at once, and hands the result out as rows, top to bottom.

        Each is (3, n, W), float32 in [0, 1], on the host; see `models.finishing`.

        Args:
            prepared: of `prepare`, not closed.
            latent: of `sample`.
            options: of this image.
            tell: as in `prepare`.

        Raises:
            ScratchFull: the disk for feature maps has no room left.
            NotFinite: the networks did not give numbers.
        """
        check_finite(latent, "sampled latent", self.dtype)
        trim()
        with torch.inference_mode():
            with self.residency.holding("autoencoder"):
                image = self._autoencoder.decode(
                    latent,
                    prepared.encoding.features,
                    options.fidelity_weight,
                    self.planner.pieces_now(
                        prepared.plan, options, prepared.held, prepared.encoding.keep
                    ),
                    tell=tell,
                )
            trim()
        check_finite(image, "decoded image", self.dtype)
        layout = prepared.plan.layout
        return finished_rows(image, prepared.reference, layout, options.color_fix)

    def decode(self, prepared: Prepared, latent: Tensor, options: UpscaleParameters) -> Tensor:
        """`rows`, joined: (1, 3, H, W)."""
        return joined(self.rows(prepared, latent, options), prepared.plan.layout.size)

    def upscale(
        self,
        image: Tensor,
        options: UpscaleParameters | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Tensor:
        """All of it, alone: (1, 3, H, W) in [0, 1] -> (1, 3, scale * H, scale * W)."""
        options = options or preset_parameters(self.preset)
        [result] = self.upscale_seeds(image, options, [options.seed], progress)
        return result

    def upscale_seeds(
        self,
        image: Tensor,
        options: UpscaleParameters,
        seeds: Sequence[int],
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Tensor]:
        """One image from several seeds: results as `upscale` gives them, in the seeds' order.

        The image is encoded once, the seeds' tiles share network calls, and each result is decoded
        when it is asked for.
        """
        size = output_size(image.shape[2], image.shape[3], options.scale)
        for rows in self.upscale_rows(image, options, seeds, progress):
            yield joined(rows, size)

    def upscale_rows(
        self,
        image: Tensor,
        options: UpscaleParameters,
        seeds: Sequence[int],
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Iterator[Tensor]]:
        """`upscale_seeds` for results that are to be no tensors: each as `rows` gives it."""
        tell = progress or (lambda _: None)
        tell(Progress("encode", 0, 1))
        with self.prepare(image, options) as prepared:
            begun = -1

            def predict(requests: Sequence[StepRequest]) -> list[Tensor]:
                nonlocal begun
                if requests[0].step > begun:
                    begun = requests[0].step
                    tell(Progress("denoise", begun, requests[0].steps))
                return self.predict(requests)

            room = self.denoiser.room(prepared.plan.tile_batch)
            samplers = [
                self.sample(prepared, options.model_copy(update={"seed": seed})) for seed in seeds
            ]
            for latent in drive_all(samplers, predict, max_tiles=room):
                tell(Progress("decode", 0, 1))
                yield self.rows(prepared, latent, options)

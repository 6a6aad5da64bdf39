"""One stage of a run, from its settings to the weights it leaves; or all of them, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.networks.bundle import Networks, channels_last
from models.networks.compact import CompactAutoencoder
from models.networks.layers import PixelAttention, ResnetBlock, Transformer
from training.config import DenoisingSettings, InvalidRun, RunSettings, StageName
from training.image_loss import ImageLoss
from training.initial_weights import initial_networks
from training.objectives import Cfw, Decoder, Denoising, Distillation, Objective, Vae
from training.pairs import stream
from training.sources import Sources
from training.trainer import WEIGHTS_FOLDER, Outcome, Trainer

_LOG = logging.getLogger(__name__)

END_MARK = "finished"
"""File in a stage's folder once its last step is made."""


def train_all(
    settings: RunSettings,
    out: Path,
    *,
    resume: bool,
    max_steps: int | None = None,
    on_progress: Callable[[str], None] = print,
) -> Outcome:
    """Every stage of the settings in order; with `resume` those that are finished are left out."""
    outcome: Outcome = "finished"
    for stage in settings.stages:
        if resume and (out / stage / END_MARK).exists():
            on_progress(f"{stage}: finished before")
            continue
        outcome = train(
            stage, settings, out, resume=resume, max_steps=max_steps, on_progress=on_progress
        )
        if outcome == "stopped":
            break
    return outcome


def train(
    stage: StageName,
    settings: RunSettings,
    out: Path,
    *,
    resume: bool,
    max_steps: int | None = None,
    on_progress: Callable[[str], None] = print,
) -> Outcome:
    """One stage. Its averaged weights lie in `out/STAGE/weights` from the first checkpoint on.

    `max_steps` leaves the stage's schedule unchanged.

    Raises:
        InvalidRun: the settings have no such stage, or cannot be followed.
        NoPhotographs: there is nothing to learn from.
        RunExists: there is a checkpoint and `resume` is False.
        ModelError: the weights to start from cannot be read.
    """
    table = getattr(settings, stage)
    if table is None:
        raise InvalidRun(f"The configuration has no table [{stage}], so there is nothing to do.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRun("device is cuda, and torch finds none here: cpu is what there is.")
    accelerator = Accelerator(
        cpu=settings.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=settings.precision,
        gradient_accumulation_steps=table.loop.accumulate,
    )
    if not accelerator.is_main_process:
        on_progress = _LOG.debug
    seed = stream(settings.seed, stage)
    networks = initial_networks(stage, settings, out, seed, on_progress).to(accelerator.device)
    networks.requires_grad_(False)  # the trainer changes that for what learns
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # Its convolutions take two thirds of the time in this layout.
        channels_last(networks.autoencoder)
        fix_slopes(networks.autoencoder)
    folder = out / stage
    sources = Sources(settings, folder, accelerator, on_progress)
    objective = _objective(stage, networks, settings, sources, accelerator)
    if getattr(table, "checkpoint_activations", False):
        recompute_activations(networks)
    trainer = Trainer(
        objective, table.loop, folder, accelerator, on_progress=on_progress, blend=table.blend
    )
    outcome = trainer.run(resume=resume, max_steps=max_steps)
    if outcome == "finished" and accelerator.is_main_process:
        (folder / END_MARK).write_text(f"{trainer.progress.step} steps\n", encoding="utf-8")
    accelerator.free_memory()
    steps = trainer.progress.step
    on_progress(f"{stage}: {outcome} after {steps} steps; {folder / WEIGHTS_FOLDER}")
    return outcome


def _objective(
    stage: StageName,
    networks: Networks,
    settings: RunSettings,
    sources: Sources,
    accelerator: Accelerator,
) -> Objective:
    table = getattr(settings, stage)
    seed = stream(settings.seed, stage, accelerator.process_index)
    if isinstance(table, DenoisingSettings):
        return Denoising(stage, networks, sources.latents(stage, table, networks), seed)
    critic_seed = stream(settings.seed, f"{stage}/critic")
    loss = ImageLoss(table.loss, networks.autoencoder, seed=critic_seed, device=accelerator.device)
    if stage == "distill":
        return Distillation(stage, networks, sources.teacher(), table, loss, seed)
    if stage == "cfw":
        return Cfw(stage, networks, sources.samples(table, networks), table, loss, seed)
    kind = Vae if stage == "vae" else Decoder
    return kind(stage, networks, sources.images(table, seed), table, loss, seed)


class FixedPReLU(nn.PReLU):
    """PReLU whose slopes do not learn. torch's backward pass computes their gradients all the same:
    on a processor in bfloat16 that was two fifths of a step."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(F.relu(x), x, self.weight.to(x.dtype)[:, None, None])


def fix_slopes(module: nn.Module) -> None:
    """Makes all its PReLUs such ones, in place."""
    for child in module.modules():
        if isinstance(child, nn.PReLU):
            child.__class__ = FixedPReLU


def recompute_activations(module: nn.Module) -> None:
    """Residual blocks and transformers keep their inputs only and run again in the backward pass.

    The numbers stay the same; the module is changed in place.
    """
    for child in module.children():
        if isinstance(child, ResnetBlock | Transformer | PixelAttention):
            # Not deeper: an attention inside a transformer runs again with it.
            child.forward = partial(checkpoint, child.forward, use_reentrant=False)  # type: ignore[method-assign]  # on purpose, on this instance
        else:
            recompute_activations(child)

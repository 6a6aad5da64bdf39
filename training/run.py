"""One stage of a run, from its settings to the weights it hands on; or all of them, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.checkpoints.folder import save_folder
from models.networks.bundle import Networks, channels_last
from models.networks.compact import CompactAutoencoder
from training.checkpoint import blended
from training.config import (
    CfwSettings,
    DecoderSettings,
    DenoisingSettings,
    DistillSettings,
    InvalidRun,
    RunSettings,
    StageName,
    VaeSettings,
)
from training.denoising import Guidance, Prior
from training.image_loss import ImageLoss
from training.objective import Objective
from training.pairs import stream
from training.realesrgan import CompactNet
from training.sampling import Cfw, Distillation
from training.sources import Sources
from training.starting import WEIGHTS_FOLDER, starting_networks
from training.trainer import Ended, Trainer
from training.vae import Decoder, Vae

__all__ = ["FINISHED", "recompute_activations", "train", "train_all"]

_LOG = logging.getLogger(__name__)

FINISHED = "finished"
"""File in a stage's folder once its last step is made."""


def train_all(
    settings: RunSettings,
    out: Path,
    *,
    resume: bool,
    max_steps: int | None = None,
    say: Callable[[str], None] = print,
) -> Ended:
    """Every stage of the settings in order; with `resume` those that are finished are left out."""
    ended: Ended = "finished"
    for stage in settings.stages:
        if resume and (out / stage / FINISHED).exists():
            say(f"{stage}: finished before")
            continue
        ended = train(stage, settings, out, resume=resume, max_steps=max_steps, say=say)
        if ended == "stopped":
            break
    return ended


def train(
    stage: StageName,
    settings: RunSettings,
    out: Path,
    *,
    resume: bool,
    max_steps: int | None = None,
    say: Callable[[str], None] = print,
) -> Ended:
    """One stage. Its averaged weights lie in `out/STAGE/weights` from the first checkpoint on.

    Args:
        out: the run's folder; every stage has one below it.
        resume: go on from the stage's checkpoint.
        max_steps: stop after this many steps of the stage, its schedule unchanged.
        say: hears what is going on.

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
        say = _LOG.debug
    seed = stream(settings.seed, stage)
    networks = starting_networks(stage, settings, out, seed, say).to(accelerator.device)
    networks.requires_grad_(False)
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # Its convolutions take two thirds of the time in this layout.
        channels_last(networks.autoencoder)
    folder = out / stage
    objective = _objective(stage, networks, settings, folder, accelerator, say)
    if isinstance(table, DenoisingSettings) and table.checkpoint_activations:
        recompute_activations(networks)

    share = settings.distill.blend if settings.distill and stage == "distill" else 1.0
    parameters = dict(networks.named_parameters()) if share < 1 else {}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def export() -> None:
        if isinstance(objective, Vae):
            objective.rescale()
        with blended(parameters, start, share):
            save_folder(networks, folder / WEIGHTS_FOLDER, torch.float32)

    trainer = Trainer(
        objective,
        table.loop,
        folder,
        accelerator,
        export=export,
        say=say,
    )
    ended = trainer.run(resume=resume, max_steps=max_steps)
    if ended == "finished" and accelerator.is_main_process:
        (folder / FINISHED).write_text(f"{trainer.progress.step} steps\n", encoding="utf-8")
    accelerator.free_memory()
    say(f"{stage}: {ended} after {trainer.progress.step} steps; {folder / WEIGHTS_FOLDER}")
    return ended


def _objective(
    stage: StageName,
    networks: Networks,
    settings: RunSettings,
    folder: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> Objective:
    table, device = getattr(settings, stage), accelerator.device
    seed = stream(settings.seed, stage, accelerator.process_index)
    sources = Sources(settings, folder, accelerator, say)
    if isinstance(table, DenoisingSettings):
        kind = Prior if stage == "prior" else Guidance
        return kind(networks, sources.latents(stage, table, networks), seed)
    critic_seed = stream(settings.seed, f"{stage}/critic")
    loss = ImageLoss(table.loss, networks.autoencoder, seed=critic_seed, device=device)
    if isinstance(table, VaeSettings):
        return Vae(networks, sources.images(table, seed), table, loss, seed)
    if isinstance(table, DecoderSettings):
        network = CompactNet.from_model(table.network).to(device)
        return Decoder(networks, network, sources.images(table, seed), loss, seed)
    if isinstance(table, DistillSettings):
        return Distillation(networks, sources.taught(), table, loss, seed, device)
    assert isinstance(table, CfwSettings)  # the last of the stages
    return Cfw(networks, sources.sampled(table, networks), table, loss, seed, device)


def recompute_activations(module: nn.Module) -> int:
    """Residual blocks and transformers keep their inputs only and run again in the backward pass.

    The numbers stay the same. Returns how many blocks were changed, in place.
    """
    blocks = (ResnetBlock2D, Transformer2DModel, Attention)
    changed = 0
    pending = list(module.children())
    while pending:
        child = pending.pop()
        if isinstance(child, blocks):
            # Not deeper: an attention inside a transformer runs again with it.
            child.forward = partial(checkpoint, child.forward, use_reentrant=False)  # type: ignore[method-assign]  # on purpose, on this instance
            changed += 1
        else:
            pending += child.children()
    return changed

"""One stage of a run, from its settings to the weights it hands on; or all of them, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from models.checkpoints.folder import save_folder
from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from models.networks.layout import channels_last
from training.activations import recompute_activations
from training.average import blended
from training.cfw import Cfw
from training.config import DenoisingSettings, RunSettings, StageName
from training.decoder import Decoder
from training.denoising import Guidance, Prior
from training.distill import Distillation
from training.errors import InvalidRun
from training.image_loss import ImageLoss
from training.objective import Objective
from training.pairs import stream
from training.realesrgan import CompactNet
from training.sources import Sources
from training.starting import WEIGHTS_FOLDER, starting_networks
from training.trainer import Ended, Trainer
from training.vae import Vae, latent_scale

__all__ = ["FINISHED", "train", "train_all"]

FINISHED = "finished"
"""File in a stage's folder once its last step is made."""

# Batches whose images the latents are scaled by.
_SCALED_BY = 8


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
        say = _silent
    seed = stream(settings.seed, stage)
    networks = starting_networks(stage, settings, out, seed, say).to(accelerator.device)
    networks.requires_grad_(False)
    if isinstance(networks.autoencoder, CompactAutoencoder):
        # Its convolutions take two thirds of the time in this layout.
        channels_last(networks.autoencoder)
    folder = out / stage
    objective, loss = _objective(stage, networks, settings, folder, accelerator, say)
    if isinstance(table, DenoisingSettings) and table.checkpoint_activations:
        recompute_activations(networks)

    share = settings.distill.blend if settings.distill and stage == "distill" else 1.0
    parameters = dict(networks.named_parameters()) if share < 1 else {}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def export() -> None:
        if isinstance(objective, Vae):
            _rescale(networks, objective)
        with blended(parameters, start, share):
            save_folder(networks, folder / WEIGHTS_FOLDER, torch.float32)

    trainer = Trainer(
        objective,
        table.loop,
        folder,
        accelerator,
        critic_rate=None if loss is None else loss.settings.critic_learning_rate,
        export=export,
        say=say,
    )
    ended = trainer.run(resume=resume, max_steps=max_steps)
    if ended == "finished" and accelerator.is_main_process:
        (folder / FINISHED).write_text(f"{trainer.progress.step} steps\n", encoding="utf-8")
    accelerator.free_memory()
    say(f"{stage}: {ended} after {trainer.progress.step} steps; {folder / WEIGHTS_FOLDER}")
    return ended


def _silent(line: str) -> None:
    """What processes but the first say."""


def _rescale(networks: Networks, objective: Vae) -> None:
    """Scales latents to a deviation of one, of images that do not change with the step."""
    assert isinstance(networks.autoencoder, CompactAutoencoder)  # the stage refuses others
    images = torch.cat([objective.draw(number)["image"] for number in range(_SCALED_BY)])
    sizes = latent_scale(networks.autoencoder, (images + 1) / 2)
    networks.autoencoder.config = sizes
    networks.config = dataclasses.replace(networks.config, autoencoder=sizes)


def _objective(
    stage: StageName,
    networks: Networks,
    settings: RunSettings,
    folder: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> tuple[Objective, ImageLoss | None]:
    device, rank = accelerator.device, accelerator.process_index
    seed = stream(settings.seed, stage, rank)
    sources = Sources(settings, folder, accelerator, say)
    if stage == "prior" or stage == "encoder":
        latents = sources.latents(stage, networks)
        kind = Prior if stage == "prior" else Guidance
        return kind(networks, latents, seed), None
    table = {
        "vae": settings.vae,
        "decoder": settings.decoder,
        "distill": settings.distill,
        "cfw": settings.cfw,
    }[stage]
    assert table is not None  # the caller looked
    loss = ImageLoss(
        table.loss,
        networks.autoencoder,
        seed=stream(settings.seed, f"{stage}/critic"),
        device=device,
    )
    if stage == "vae":
        assert settings.vae is not None
        images = sources.images(settings.vae, seed)
        return Vae(networks, images, settings.vae, loss, seed), loss
    if stage == "decoder":
        assert settings.decoder is not None
        network = CompactNet.from_model(settings.decoder.network).to(device)
        images = sources.images(settings.decoder, seed)
        return Decoder(networks, network, images, loss, seed), loss
    if stage == "distill":
        assert settings.distill is not None
        return Distillation(networks, sources.taught(), settings.distill, loss, seed, device), loss
    assert settings.cfw is not None
    return Cfw(networks, sources.sampled(networks), settings.cfw, loss, seed, device), loss

"""One stage of a run, from its settings to the weights it hands on; or all of them, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from models.checkpoints.folder import save_folder
from models.networks.bundle import Networks
from models.training.activations import recompute_activations
from models.training.cfw import Cfw, sampled_batch
from models.training.config import DenoisingSettings, RunSettings, StageName
from models.training.denoising import Guidance, Latents, Prior
from models.training.errors import InvalidRun
from models.training.image_loss import ImageLoss
from models.training.objective import Batch, Objective
from models.training.pairs import Pairs, stream
from models.training.shards import Shards
from models.training.starting import WEIGHTS_FOLDER, fingerprint, starting_networks
from models.training.trainer import Ended, Trainer
from models.training.vae import Vae, latent_deviation

__all__ = ["FINISHED", "train", "train_all"]

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
        say = _silent
    seed = stream(settings.seed, stage)
    networks = starting_networks(stage, settings, out, seed, say).to(accelerator.device)
    networks.requires_grad_(False)
    folder = out / stage
    objective, loss = _objective(stage, networks, settings, folder, accelerator, say)
    if isinstance(table, DenoisingSettings) and table.checkpoint_activations:
        recompute_activations(networks)

    def export() -> None:
        if isinstance(objective, Vae):
            _rescale(networks, objective)
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
    """Scales latents to a deviation of one, of photographs that do not change with the step."""
    image = (objective.draw(0)["image"] + 1) / 2
    scale = 1 / latent_deviation(networks.autoencoder, image)
    sizes = dataclasses.replace(networks.config.autoencoder, scaling_factor=scale)
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
    if stage == "prior" or stage == "encoder":
        latents = _latents(stage, networks, settings, folder, accelerator)
        kind = Prior if stage == "prior" else Guidance
        return kind(networks, latents, seed), None
    table = settings.vae if stage == "vae" else settings.cfw
    assert table is not None  # the caller looked
    loss = ImageLoss(
        table.loss,
        networks.autoencoder,
        seed=stream(settings.seed, f"{stage}/critic"),
        device=device,
    )
    if stage == "vae":
        assert settings.vae is not None
        pairs = Pairs(
            settings.data, crop=table.crop, batch=table.loop.batch, seed=seed, device=device
        )
        return Vae(networks, pairs.high, settings.vae, loss, seed), loss
    assert settings.cfw is not None
    sampled = _sampled(networks, settings, folder, accelerator, say)
    return Cfw(networks, sampled, settings.cfw, loss, seed, device), loss


def _latents(
    stage: StageName,
    networks: Networks,
    settings: RunSettings,
    folder: Path,
    accelerator: Accelerator,
) -> Latents:
    """Latents of photographs and, for the guidance, of their degraded selves."""
    table = settings.prior if stage == "prior" else settings.encoder
    assert table is not None  # the caller looked
    device, rank = accelerator.device, accelerator.process_index
    of = stream(settings.seed, f"{stage}/pairs", 0 if table.cached else rank)
    pairs = Pairs(settings.data, crop=table.crop, batch=table.loop.batch, seed=of, device=device)
    first_stage = networks.first_stage or networks.autoencoder

    def encoded(image: Tensor) -> Tensor:
        with torch.no_grad(), accelerator.autocast():
            moments = first_stage.encode(image * 2 - 1).moments
        # Contiguous: torch 2.13's group norm of a channels-last input crashes in the backward
        # pass under autocast when its own weights are frozen.
        return first_stage.latent(moments.float()).contiguous()

    def batch(number: int) -> Batch:
        if stage == "prior":
            return {"high": encoded(pairs.high(number))}
        high, low = pairs.at(number)
        return {"high": encoded(high), "low": encoded(low)}

    if not table.cached:
        return lambda number, generator: batch(number)
    shards = Shards(
        folder / "latents",
        batch,
        table.cached,
        {
            "data": settings.data.model_dump(mode="json"),
            "crop": table.crop,
            "batch": table.loop.batch,
            "seed": of,
            "weights": fingerprint(networks, of=lambda n: n.startswith(_FIRST_STAGE)),
        },
    )
    processes = accelerator.num_processes

    def picked(number: int, generator: torch.Generator) -> Batch:
        mine = number * processes + rank
        if mine < table.cached:  # the first time round each is new, and made now
            return {k: v.to(device) for k, v in shards.whole(mine).items()}
        entries = shards.pick(table.loop.batch, generator)
        return {k: torch.stack([e[k] for e in entries]).to(device) for k in entries[0]}

    return picked


_FIRST_STAGE = ("autoencoder.encoder.", "autoencoder.quant_conv.", "first_stage.")


def _sampled(
    networks: Networks,
    settings: RunSettings,
    folder: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> Shards:
    """What the model makes of degraded photographs: the fusion layers have to mend that."""
    table = settings.cfw
    assert table is not None  # the caller looked
    of = stream(settings.seed, "cfw/pairs")
    pairs = Pairs(
        settings.data,
        crop=table.crop,
        batch=table.sampled_batch,
        seed=of,
        device=accelerator.device,
    )

    def batch(number: int) -> Batch:
        generator = torch.Generator().manual_seed(of * 1_000_003 + number)
        with accelerator.autocast():
            return sampled_batch(
                networks, pairs.at(number), steps=table.sampling_steps, generator=generator
            )

    shards = Shards(
        folder / "sampled",
        batch,
        table.sampled,
        {
            "data": settings.data.model_dump(mode="json"),
            "crop": table.crop,
            "batch": table.sampled_batch,
            "steps": table.sampling_steps,
            "seed": of,
            "weights": fingerprint(networks, of=lambda n: ".fusion." not in n),
        },
    )
    shards.make(say, rank=accelerator.process_index, processes=accelerator.num_processes)
    accelerator.wait_for_everyone()
    return shards

"""The networks a stage starts from, how new ones are put into them, and the sizes of new ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from models.checkpoints.folder import load_folder, preset_folder
from models.checkpoints.places import CONFIG
from models.config import AutoencoderConfig, CompactConfig, EncoderConfig, ModelConfig, UNetConfig
from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from models.presets import PRESETS
from training.config import STAGES, InvalidRun, RunSettings, StageName
from training.denoising import Guidance, Prior, open_modulation
from training.realesrgan import CompactNet, start_decoder

__all__ = ["SIZES", "TINY", "WEIGHTS_FOLDER", "fingerprint", "starting_networks"]

TINY = ModelConfig(
    unet=UNetConfig(
        in_channels=16,
        out_channels=16,
        widths=(64, 96, 128, 128),
        layers=1,
        # 4096 tokens of self-attention at the finest level cost as much as all the rest.
        attention=(False, True, True, False),
        head_channels=32,
        context_width=32,
        feature_width=48,
        modulation_width=32,
        # Groups of two channels, as version 1 had at the finest level, normalise too much away.
        groups=8,
    ),
    encoder=EncoderConfig(
        in_channels=16,
        widths=(48, 64, 64, 64),
        layers=1,
        attention=(False, True, True, False),
        heads=4,
        feature_width=48,
        groups=8,
    ),
    autoencoder=CompactConfig(),
    # Far fewer steps than the released 200: v keeps the early ones stable.
    prediction="v_prediction",
    # One step from the LR latent as it is. From pure noise the guidance has to hand the whole image
    # to a frozen UNet, which it had not learned after 200 steps; from here it had after 20.
    first_timestep=250,
    noised_start=False,
    context_tokens=4,
)

SIZES = {"tiny": TINY, "full": ModelConfig()}
"""By the name that a configuration gives; `full` is the released StableSR's."""


WEIGHTS_FOLDER = "weights"
"""Below a stage's folder: what it hands on."""


def starting_networks(
    stage: StageName, settings: RunSettings, out: Path, seed: int, say: Callable[[str], None]
) -> Networks:
    """What the stage before this one wrote in `out`; else the base; for the first, random numbers.

    Float32, on the CPU; which it was is said. Where the stage is `fresh`, its own part is random.

    Raises:
        InvalidRun: there is nothing to start from, or it does not fit the sizes.
        ModelError: the weights cannot be read.
    """
    fresh = getattr(getattr(settings, stage), "fresh", False)
    torch.manual_seed(seed)
    if stage == STAGES[0] and (fresh or settings.base is None):
        say(f"{stage}: starting from random numbers, sizes {settings.sizes}")
        networks = Networks(SIZES[settings.sizes])
        autoencoder = _compact(networks, stage)
        if settings.vae is not None and settings.vae.decoder_from is not None:
            say(f"{stage}: the decoder starts from {settings.vae.decoder_from}")
            start_decoder(autoencoder.decoder, CompactNet.from_model(settings.vae.decoder_from))
        return networks
    folder = _folder(stage, settings, out)
    say(f"{stage}: starting from {folder}" + (", its own part anew" * fresh))
    networks = load_folder(folder, torch.device("cpu"), torch.float32)
    if stage in ("vae", "decoder", "distill"):
        autoencoder = _compact(networks, stage)
        if settings.decoder is not None and stage == "decoder":
            network = CompactNet.from_model(settings.decoder.network)
            start_decoder(autoencoder.decoder, network)
    if fresh:
        networks = _renewed(stage, networks, SIZES[settings.sizes])
        start = getattr(getattr(settings, stage), "start", None)
        if start is not None:
            _borrow(stage, networks, start, say)
    return networks


def _compact(networks: Networks, stage: StageName) -> CompactAutoencoder:
    if not isinstance(networks.autoencoder, CompactAutoencoder):
        raise InvalidRun(
            f"The stage {stage} trains the compact autoencoder, but these weights have the "
            "released one: leave the stage out, or start from others."
        )
    return networks.autoencoder


@torch.no_grad()
def _borrow(stage: StageName, networks: Networks, folder: Path, say: Callable[[str], None]) -> None:
    """Tensors of the stage's own part from other weights, where name and shape agree."""
    theirs = load_folder(folder, torch.device("cpu"), torch.float32).state_dict()
    own = {n: p for n, p in networks.state_dict().items() if _is_fresh(stage, n)}
    fitting = [n for n, p in own.items() if n in theirs and theirs[n].shape == p.shape]
    for name in fitting:
        own[name].copy_(theirs[name])
    say(f"{stage}: {len(fitting)} of {len(own)} tensors start from {folder}")


def _folder(stage: StageName, settings: RunSettings, out: Path) -> Path:
    before = STAGES[: STAGES.index(stage)]
    # The nearest that was run: not every configuration has all of them.
    for name in reversed(before):
        if (out / name / WEIGHTS_FOLDER / CONFIG).is_file():
            return out / name / WEIGHTS_FOLDER
    if settings.base is None:
        raise InvalidRun(
            f"The stage {stage} starts from {before[-1]}, which has no weights in {out}: train "
            "that first, or name weights to start from as `base`."
        )
    if settings.base in PRESETS:
        return preset_folder(PRESETS[settings.base])
    return Path(settings.base)


def _is_fresh(stage: StageName, name: str) -> bool:
    if stage == "prior":
        return Prior.trainable(name)
    if stage == "encoder":
        return Guidance.trainable(name) and ".modulation.norm." not in name
    return ".fusion." in name


def _renewed(stage: StageName, old: Networks, sizes: ModelConfig) -> Networks:
    config = old.config
    if stage == "prior":
        config = dataclasses.replace(
            config,
            unet=sizes.unet,
            prediction=sizes.prediction,
            context_tokens=sizes.context_tokens,
        )
    elif stage == "encoder":
        config = dataclasses.replace(config, encoder=sizes.encoder)
    elif stage == "cfw":
        ours, theirs = config.autoencoder, sizes.autoencoder
        wrapped: AutoencoderConfig | CompactConfig
        if isinstance(ours, CompactConfig) and isinstance(theirs, CompactConfig):
            wrapped = dataclasses.replace(ours, shared_layers=theirs.shared_layers)
        elif isinstance(ours, AutoencoderConfig) and isinstance(theirs, AutoencoderConfig):
            wrapped = dataclasses.replace(
                ours, growth=theirs.growth, fusion_blocks=theirs.fusion_blocks
            )
        else:
            raise InvalidRun(
                "The weights to start from and the sizes have autoencoders of two kinds: with "
                'fresh fusion layers, sizes is "tiny" for the compact one and "full" for the '
                "released one."
            )
        config = dataclasses.replace(config, autoencoder=wrapped)
    networks = Networks(config, first_stage=None if old.first_stage is None else "encoder")
    if stage == "prior":
        torch.nn.init.normal_(networks.context)
    kept = {k: v for k, v in old.state_dict().items() if not _is_fresh(stage, k)}
    wanted = networks.state_dict()
    for name, tensor in kept.items():
        if name in wanted and wanted[name].shape != tensor.shape:
            raise InvalidRun(
                f"{name} is {tuple(tensor.shape)} in the weights to start from and "
                f"{tuple(wanted[name].shape)} in the configured sizes: they must agree."
            )
    networks.load_state_dict(kept, strict=False)
    if stage in ("prior", "encoder"):
        open_modulation(networks.unet)
    if stage == "cfw" and isinstance(networks.autoencoder, CompactAutoencoder):
        decoder = networks.autoencoder.decoder
        assert decoder.fusion is not None
        decoder.fusion.copy(decoder.layers[decoder.shared_layers :])
    return networks


def fingerprint(networks: Networks, *, of: Callable[[str], bool]) -> str:
    """A digest of the tensors whose names `of` accepts."""
    digest = hashlib.sha256()
    for name, tensor in networks.state_dict().items():
        if of(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

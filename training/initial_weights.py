"""The networks that a stage starts from, and the sizes of fresh ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from models.checkpoints.files import CONFIG, preset_folder
from models.checkpoints.folder import load_folder
from models.config import CompactConfig, EncoderConfig, ModelConfig, UNetConfig
from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from models.presets import PRESETS
from training.config import STAGES, InvalidRun, RunSettings, StageName
from training.objectives import learns
from training.realesrgan import CompactNet, start_decoder, start_fusion
from training.trainer import WEIGHTS_FOLDER

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

# Fields of a configuration that a fresh stage takes from the run's sizes.
_OWN_SIZES = {"prior": ("unet", "prediction", "context_tokens"), "encoder": ("encoder",)}


def initial_networks(
    stage: StageName,
    settings: RunSettings,
    out: Path,
    seed: int,
    on_progress: Callable[[str], None],
) -> Networks:
    """What the stage before this one wrote in `out`; else the base; for the first, random numbers.

    Float32, on the CPU; which it was is said. Where the stage is `fresh`, its own part is random.

    Raises:
        InvalidRun: there is nothing to start from, or it does not fit the sizes.
        ModelError: the weights cannot be read.
    """
    table, sizes = getattr(settings, stage), SIZES[settings.sizes]
    fresh, start = getattr(table, "fresh", False), getattr(table, "start", None)
    torch.manual_seed(seed)
    random = stage == STAGES[0] and (fresh or settings.base is None)
    if random:
        on_progress(f"{stage}: starting from random numbers, sizes {settings.sizes}")
        networks = Networks(sizes)
    else:
        folder = _folder(stage, settings, out)
        on_progress(f"{stage}: starting from {folder}" + (", its own part anew" * fresh))
        networks = _load(folder)
        if fresh:
            networks = _refresh(stage, networks, sizes)
    autoencoder = networks.autoencoder
    if not isinstance(autoencoder, CompactAutoencoder):
        if stage in ("vae", "decoder", "distill"):
            raise InvalidRun(
                f"The stage {stage} trains the compact autoencoder, but these weights have the "
                "released one: leave the stage out, or start from others."
            )
    elif settings.decoder is not None and (
        random or stage == "decoder" or (stage == "cfw" and fresh)
    ):
        path, decoder = settings.decoder.network, autoencoder.decoder
        on_progress(f"{stage}: its layers start from {path}")
        network = CompactNet.from_model(path)
        if stage == "cfw":
            assert decoder.fusion is not None
            start_fusion(decoder.fusion, network)
        else:
            start_decoder(decoder, network)
    if start is not None:
        _borrow(stage, networks, start, on_progress)
    return networks


def _load(folder: Path) -> Networks:
    return load_folder(folder, torch.device("cpu"), torch.float32)


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


def _is_own(stage: StageName, name: str) -> bool:
    """Whether a tensor is of the part that a fresh stage begins anew."""
    if stage == "cfw":
        return ".fusion." in name
    # The norm in the modulation is the prior's.
    return learns(stage, name) and not (stage == "encoder" and ".modulation.norm." in name)


def _refresh(stage: StageName, old: Networks, sizes: ModelConfig) -> Networks:
    """The networks with the stage's own part random."""
    config = replace(old.config, **{f: getattr(sizes, f) for f in _OWN_SIZES.get(stage, ())})
    networks = Networks(config, first_stage=None if old.first_stage is None else "encoder")
    if stage == "prior":
        torch.nn.init.normal_(networks.context)
    tensors = {k: v for k, v in old.state_dict().items() if not _is_own(stage, k)}
    for name, tensor in networks.state_dict().items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise InvalidRun(
                f"{name} is {tuple(tensors[name].shape)} in the weights to start from and "
                f"{tuple(tensor.shape)} in the configured sizes: they must agree."
            )
    networks.load_state_dict(tensors, strict=False)
    if stage in ("prior", "encoder"):
        # Gamma and beta of zero: the guidance starts from the prior as it is.
        for name, parameter in networks.unet.named_parameters():
            if ".modulation.gamma." in name or ".modulation.beta." in name:
                torch.nn.init.zeros_(parameter)
    return networks


@torch.no_grad()
def _borrow(
    stage: StageName, networks: Networks, folder: Path, on_progress: Callable[[str], None]
) -> None:
    """Tensors of the stage's own part from other weights, where name and shape agree."""
    theirs = _load(folder).state_dict()
    own = {n: p for n, p in networks.state_dict().items() if _is_own(stage, n)}
    names = [n for n, p in own.items() if n in theirs and theirs[n].shape == p.shape]
    for name in names:
        own[name].copy_(theirs[name])
    on_progress(f"{stage}: {len(names)} of {len(own)} tensors start from {folder}")

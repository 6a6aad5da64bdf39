"""The stages whose networks make images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints.folder import load_folder
from tests.models.narrow import COMPACT, WITH_COMPACT
from tests.training.ncnn_files import small_compact
from tests.training.small_run import (
    CPU,
    DISTILL,
    TEACHER,
    VAE,
    changed_names,
    loop,
    quiet,
    settings_of,
)
from training.config import InvalidRun, RunSettings, StageName
from training.initial_weights import initial_networks
from training.pairs import Pairs, read_photographs
from training.run import train


def test_the_compact_autoencoder_is_scaled_so_that_every_channel_deviates_by_one(
    tmp_path: Path,
) -> None:
    settings = settings_of(tmp_path, WITH_COMPACT, vae={**VAE, "teacher_share": 0})
    train("vae", settings, tmp_path / "out", resume=False, max_steps=1)
    autoencoder = load_folder(tmp_path / "out" / "vae" / "weights", CPU, torch.float32).autoencoder
    images = read_photographs(settings.data.photographs, 32)
    pairs = Pairs(images, settings.data, crop=32, batch=64, seed=1, device=CPU)
    with torch.no_grad():
        latent = autoencoder.latent(autoencoder.encode(pairs.high(0) * 2 - 1).moments)
    deviation = latent.std(dim=(0, 2, 3))
    # Of other crops than those that it was scaled by, which were few.
    assert 0.6 < float(deviation.min()) <= float(deviation.max()) < 1.6
    assert autoencoder.config != COMPACT


@pytest.mark.parametrize(("stage", "table"), [("vae", VAE), ("distill", DISTILL)])
def test_stages_of_the_compact_autoencoder_refuse_the_released_one(
    tmp_path: Path, stage: StageName, table: dict[str, Any]
) -> None:
    settings = settings_of(tmp_path, teacher=TEACHER, **{stage: table})
    with pytest.raises(InvalidRun, match=f"The stage {stage} trains the compact autoencoder"):
        train(stage, settings, tmp_path / "out", resume=False)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    network = small_compact(1)
    last = network.layers[-1]
    assert isinstance(last, torch.nn.Conv2d)
    # What is learned in a few steps: all is brighter.
    torch.nn.init.zeros_(last.weight)
    assert last.bias is not None
    torch.nn.init.constant_(last.bias, 0.5)
    monkeypatch.setattr("training.realesrgan.CompactNet.from_model", lambda _: network)
    rates = {"learning_rate": 1e-2, "average": 0, "weight_decay": 0, "batch": 4}
    table = {"crop": 64, "network": "none", "loop": loop(30, **rates)}
    return settings_of(tmp_path, WITH_COMPACT, decoder=table)


def test_the_head_alone_learns_what_the_networks_last_layer_does(
    tmp_path: Path, settings: RunSettings
) -> None:
    out = tmp_path / "out"
    before = initial_networks("decoder", settings, out, 0, quiet).state_dict()
    assert train("decoder", settings, out, resume=False) == "finished"
    after = load_folder(out / "decoder" / "weights", CPU, torch.float32).state_dict()
    names = {name for name in before if not torch.equal(before[name], after[name])}
    assert names
    assert all(name.startswith("autoencoder.decoder.head.") for name in names)
    lines = (out / "decoder" / "log.jsonl").read_text().splitlines()
    terms = [json.loads(line)["l1"] for line in lines]
    assert sum(terms[-5:]) < 0.7 * sum(terms[:5])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, settings: RunSettings) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("decoder", settings, whole, resume=False, max_steps=6)
    train("decoder", settings, parts, resume=False, max_steps=3)
    train("decoder", settings, parts, resume=True, max_steps=6)
    ends = [folder / "decoder" / "weights" for folder in (whole, parts)]
    assert not changed_names(*ends)

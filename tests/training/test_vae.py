"""The stage in which the decoder becomes Real-ESRGAN's compact network with another end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.checkpoints.folder import load_folder
from tests.models.narrow import WITH_COMPACT
from tests.training.ncnn_files import small_compact
from tests.training.small_run import CPU, learned_names, loop, settings_of
from training.config import RunSettings
from training.run import train
from training.starting import starting_networks


def quiet(line: str) -> None:
    """Nothing is shown."""


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
    before = starting_networks("decoder", settings, out, 0, quiet).state_dict()
    assert train("decoder", settings, out, resume=False, say=quiet) == "finished"
    after = load_folder(out / "decoder" / "weights", CPU, torch.float32).state_dict()
    learned = {name for name in before if not torch.equal(before[name], after[name])}
    assert learned
    assert all(name.startswith("autoencoder.decoder.head.") for name in learned)
    lines = (out / "decoder" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["l1"] for line in lines]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, settings: RunSettings) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("decoder", settings, whole, resume=False, max_steps=6, say=quiet)
    train("decoder", settings, parts, resume=False, max_steps=3, say=quiet)
    train("decoder", settings, parts, resume=True, max_steps=6, say=quiet)
    ends = [folder / "decoder" / "weights" for folder in (whole, parts)]
    assert not learned_names(*ends)

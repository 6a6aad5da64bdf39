"""What a stage starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.networks.bundle import Networks
from models.networks.compact import CompactAutoencoder
from tests.models.narrow import CONFIG, WITH_COMPACT
from tests.training.ncnn_files import small_compact
from tests.training.small_run import base_weights, loop, quiet, settings_of
from training.config import InvalidRun, RunSettings, StageName
from training.initial_weights import SIZES, initial_networks


def networks_of(stage: StageName, settings: RunSettings, out: Path, seed: int = 0) -> Networks:
    return initial_networks(stage, settings, out, seed, quiet)


def test_a_fresh_autoencoder_starts_from_the_seed_and_not_from_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "tiny", WITH_COMPACT)
    settings = settings_of(tmp_path, vae={"crop": 32, "fresh": True, "loop": loop(1)})
    networks = networks_of("vae", settings, tmp_path / "out")
    assert networks.config == WITH_COMPACT
    again, other = (networks_of("vae", settings, tmp_path / "out", seed) for seed in (0, 1))
    expected, name = networks.state_dict(), "autoencoder.encoder.conv_in.weight"
    assert torch.equal(again.state_dict()[name], expected[name])
    assert not torch.equal(other.state_dict()[name], expected[name])


@pytest.mark.parametrize("stage", ["vae", "cfw"])
def test_what_is_fresh_starts_from_the_network_of_the_stage_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: StageName
) -> None:
    monkeypatch.setitem(SIZES, "tiny", WITH_COMPACT)
    paths: list[Path] = []

    def from_model(path: Path) -> torch.nn.Module:
        paths.append(path)
        return small_compact(1)

    monkeypatch.setattr("training.initial_weights.CompactNet.from_model", from_model)
    tables = {
        "vae": {"crop": 32, "fresh": True, "loop": loop(1)},
        "cfw": {"crop": 64, "fresh": True, "sampled": 1, "crop_cells": 4, "loop": loop(1)},
        "decoder": {"crop": 32, "network": tmp_path / "models", "loop": loop(1)},
    }
    settings = settings_of(tmp_path, WITH_COMPACT, **tables)
    networks = networks_of(stage, settings, tmp_path / "out")
    assert paths == [tmp_path / "models"]
    assert isinstance(networks.autoencoder, CompactAutoencoder)
    decoder = networks.autoencoder.decoder
    part = decoder.fusion if stage == "cfw" else decoder
    assert part is not None
    ours, theirs = part.state_dict(), small_compact(1).state_dict()
    assert torch.equal(ours["picture_in.weight"], theirs["layers.0.weight"])
    assert torch.equal(ours["layers.1.conv.weight"], theirs["layers.4.weight"])


def test_random_networks_with_the_released_autoencoder_are_refused_for_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "tiny", CONFIG)
    settings = settings_of(tmp_path, vae={"crop": 32, "fresh": True, "loop": loop(1)})
    with pytest.raises(InvalidRun, match="The stage vae trains the compact autoencoder"):
        networks_of("vae", settings, tmp_path / "out")


def test_a_fresh_prior_takes_from_other_weights_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A latent of more channels changes the first and the last layer of the UNet alone."""
    monkeypatch.setitem(SIZES, "tiny", WITH_COMPACT)
    start = base_weights(tmp_path / "start", CONFIG)
    table = {"crop": 64, "fresh": True, "start": start, "loop": loop(1)}
    settings = settings_of(tmp_path, WITH_COMPACT, prior=table)
    lines: list[str] = []
    networks = initial_networks("prior", settings, tmp_path / "out", 7, lines.append).state_dict()
    torch.manual_seed(3)
    theirs = Networks(CONFIG).state_dict()
    other = {n for n, p in networks.items() if n in theirs and not torch.equal(p, theirs[n])}
    of_prior = {n for n in other if n.startswith("unet.") and ".modulation." not in n}
    assert of_prior == {"unet.conv_in.weight", "unet.conv_out.weight", "unet.conv_out.bias"}
    assert any(line.endswith(f"tensors start from {start}") for line in lines)


def test_a_stage_starts_from_the_nearest_one_before_it_that_was_run(tmp_path: Path) -> None:
    """Without distillation the fusion layers follow the guidance."""
    cfw = {"crop": 64, "sampled": 1, "crop_cells": 4, "loop": loop(1)}
    settings = settings_of(tmp_path, cfw=cfw)
    lines: list[str] = []
    out = tmp_path / "out"
    for stage in ("prior", "encoder", "distill"):
        initial_networks("cfw", settings, out, 0, lines.append)
        (out / stage).mkdir(parents=True)
        base_weights(out / stage / "weights", replace(CONFIG, context_tokens=3))
    initial_networks("cfw", settings, out, 0, lines.append)
    assert lines == [
        f"cfw: starting from {place}"
        for place in (
            tmp_path / "base",
            out / "prior" / "weights",
            out / "encoder" / "weights",
            out / "distill" / "weights",
        )
    ]

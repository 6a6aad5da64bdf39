"""Stages from their settings to the weights they hand on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints.folder import load_folder
from models.config import ModelConfig
from tests.models.narrow import AUTOENCODER, COMPACT, CONFIG, WITH_COMPACT
from tests.training.small_run import CPU, Bicubic, learned_names, loop, settings_of
from training.config import InvalidRun, NoPhotographs, RunExists, RunSettings, StageName
from training.pairs import Pairs
from training.run import train, train_all
from training.sampling import Cfw
from training.starting import SIZES

VAE = {"crop": 32, "teacher_share": 0.5, "loop": loop(6, save_every=4)}
ENCODER = {"crop": 64, "cached": 2, "loop": loop(8, save_every=3)}
DISTILL = {"crop": 64, "steps": [1, 2], "loss": {}, "loop": loop(6, save_every=4)}
TEACHER = {"network": "nowhere", "crop": 64, "batch": 2, "batches": 2}
CFW = {
    "crop": 64,
    "sampled": 2,
    "sampled_batch": 2,
    "sampling_steps": 2,
    "crop_cells": 5,
    "loss": {"perceptual": 0.1, "adversarial": 0.1, "adversarial_after": 3, "critic_width": 4},
    "loop": loop(6, save_every=4),
}


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture(autouse=True)
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.shards.RRDBNet.from_model", lambda path: Bicubic())


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    found = {line["step"]: line["loss"] for line in map(json.loads, lines)}
    assert len(found) == len(lines), "a step was logged twice"
    return found


def killed(settings: RunSettings, stage: StageName, out: Path, *, after: int) -> None:
    """Runs a stage in a process of its own and kills it once it has made so many steps."""
    code = (
        "import sys; from pathlib import Path\n"
        "from training.config import RunSettings\n"
        "from training.run import train\n"
        "settings = RunSettings.model_validate_json(sys.argv[1])\n"
        "say = lambda line: print(line, flush=True)\n"
        "train(sys.argv[2], settings, Path(sys.argv[3]), resume=False, say=say)\n"
    )
    arguments = [settings.model_dump_json(), stage, str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        for line in process.stdout:
            if line.startswith(f"step {after} "):
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "table", "config"),
    [
        ("vae", VAE, WITH_COMPACT),
        ("encoder", ENCODER, CONFIG),
        ("distill", DISTILL, WITH_COMPACT),
        ("cfw", CFW, CONFIG),
        ("cfw", CFW, WITH_COMPACT),
    ],
)
def test_a_killed_run_goes_on_at_the_same_losses_and_ends_with_the_same_weights(
    tmp_path: Path, stage: StageName, table: dict[str, Any], config: ModelConfig
) -> None:
    settings = settings_of(tmp_path, config, teacher=TEACHER, **{stage: table})
    assert train(stage, settings, tmp_path / "whole", resume=False, say=quiet) == "finished"
    if (tmp_path / "whole" / "teacher").exists():
        # The other process has no stand-in for the teacher, and needs none for what is there.
        shutil.copytree(tmp_path / "whole" / "teacher", tmp_path / "cut" / "teacher")
    killed(settings, stage, tmp_path / "cut", after=5)
    assert not (tmp_path / "cut" / stage / "finished").exists()
    said: list[str] = []
    assert train(stage, settings, tmp_path / "cut", resume=True, say=said.append) == "finished"
    assert any("going on after step" in line for line in said)
    whole, cut = losses(tmp_path / "whole" / stage), losses(tmp_path / "cut" / stage)
    assert len(whole) == table["loop"]["steps"]
    assert whole == cut
    ends = [tmp_path / out / stage / "weights" for out in ("whole", "cut")]
    assert not learned_names(*ends)
    assert len({(end / "config.json").read_text() for end in ends}) == 1


def test_the_guidance_leaves_the_prior_and_the_autoencoder_bit_identical(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    train("encoder", settings, tmp_path / "out", resume=False, max_steps=4, say=quiet)
    learned = learned_names(tmp_path / "base", tmp_path / "out" / "encoder" / "weights")
    assert any(name.startswith("encoder.") for name in learned)
    assert any(".modulation.gamma." in name for name in learned)
    assert all(n.startswith("encoder.") or ".modulation." in n for n in learned)


@pytest.mark.parametrize(
    ("stage", "table", "config", "parts", "never"),
    [
        ("vae", VAE, WITH_COMPACT, ("autoencoder.encoder.", "autoencoder.decoder."), ".fusion."),
        (
            "prior",
            {"crop": 64, "loop": loop(2)},
            CONFIG,
            ("unet.", "context"),
            ".modulation.gamma.",
        ),
        (
            "distill",
            DISTILL,
            WITH_COMPACT,
            ("encoder.", "unet.", "autoencoder.decoder."),
            ".fusion.",
        ),
        ("cfw", CFW, CONFIG, ("autoencoder.decoder.fusion.",), ".conv_in."),
        ("cfw", CFW, WITH_COMPACT, ("autoencoder.decoder.fusion.",), ".head."),
    ],
)
def test_each_stage_learns_its_own_part_and_nothing_else(
    tmp_path: Path,
    stage: StageName,
    table: dict[str, Any],
    config: ModelConfig,
    parts: tuple[str, ...],
    never: str,
) -> None:
    settings = settings_of(tmp_path, config, teacher=TEACHER, **{stage: table})
    train(stage, settings, tmp_path / "out", resume=False, max_steps=2, say=quiet)
    learned = learned_names(tmp_path / "base", tmp_path / "out" / stage / "weights")
    for part in parts:
        assert any(name.startswith(part) for name in learned), part
    assert all(name.startswith(parts) and never not in name for name in learned)
    if stage == "distill":
        # Of the UNet what the encoder guides; the prior stays.
        assert all(".modulation." in name for name in learned if name.startswith("unet."))


def test_the_compact_autoencoder_is_scaled_so_that_every_channel_deviates_by_one(
    tmp_path: Path,
) -> None:
    settings = settings_of(tmp_path, WITH_COMPACT, vae={**VAE, "teacher_share": 0})
    train("vae", settings, tmp_path / "out", resume=False, max_steps=1, say=quiet)
    made = load_folder(tmp_path / "out" / "vae" / "weights", CPU, torch.float32).autoencoder
    pairs = Pairs(settings.data, crop=32, batch=64, seed=1, device=CPU)
    with torch.no_grad():
        latent = made.latent(made.encode(pairs.high(0) * 2 - 1).moments)
    deviation = latent.std(dim=(0, 2, 3))
    # Of other crops than those that it was scaled by, which were few.
    assert 0.6 < float(deviation.min()) <= float(deviation.max()) < 1.6
    assert made.config != COMPACT


@pytest.mark.parametrize(("stage", "table"), [("vae", VAE), ("distill", DISTILL)])
def test_stages_of_the_compact_autoencoder_refuse_the_released_one(
    tmp_path: Path, stage: StageName, table: dict[str, Any]
) -> None:
    settings = settings_of(tmp_path, teacher=TEACHER, **{stage: table})
    with pytest.raises(InvalidRun, match=f"The stage {stage} trains the compact autoencoder"):
        train(stage, settings, tmp_path / "out", resume=False, say=quiet)


def test_blended_weights_lie_between_the_start_and_what_was_learned(tmp_path: Path) -> None:
    folders = {}
    for share in (0.25, 1):
        table = {**DISTILL, "blend": share}
        settings = settings_of(tmp_path, WITH_COMPACT, teacher=TEACHER, distill=table)
        # Stopped and resumed: the start is not that of the second part.
        for steps, resume in ((2, False), (4, True)):
            out = tmp_path / f"out{share}"
            train("distill", settings, out, resume=resume, max_steps=steps, say=quiet)
        folders[share] = tmp_path / f"out{share}" / "distill" / "weights"
    start, learned, between = (
        load_folder(folder, CPU, torch.float32).state_dict()
        for folder in (tmp_path / "base", folders[1], folders[0.25])
    )
    for name, tensor in between.items():
        torch.testing.assert_close(tensor, start[name].lerp(learned[name], 0.25))


def test_factors_slow_the_parameters_that_they_name(tmp_path: Path) -> None:
    """AdamW's first step is as long as the rate, unless the gradient is next to nothing."""
    factors = {"autoencoder.decoder.layers.": 0.25, "autoencoder.decoder.": 0.5}
    table: dict[str, Any] = {
        **VAE,
        "teacher_share": 0,
        "loop": loop(1, average=0, weight_decay=0, factors=factors),
    }
    settings = settings_of(tmp_path, WITH_COMPACT, vae=table)
    train("vae", settings, tmp_path / "out", resume=False, say=quiet)
    before, after = (
        load_folder(folder, CPU, torch.float32).state_dict()
        for folder in (tmp_path / "base", tmp_path / "out" / "vae" / "weights")
    )
    # The first that fits counts.
    parts = (*factors, "autoencoder.encoder.")
    longest = dict.fromkeys(parts, 0.0)
    for name in before:
        part = next((part for part in parts if name.startswith(part)), None)
        if part is not None:
            step = float((after[name] - before[name]).abs().max())
            longest[part] = max(longest[part], step / table["loop"]["learning_rate"])
    assert list(longest.values()) == pytest.approx([0.25, 0.5, 1.0], rel=0.01)


def test_backward_passes_of_one_step_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batch three times is worth that batch once."""
    draw = Cfw.draw
    monkeypatch.setattr(Cfw, "draw", lambda self, number: draw(self, 0))
    once = settings_of(tmp_path, cfw={**CFW, "loss": {}, "loop": loop(2)})
    thrice = settings_of(tmp_path, cfw={**CFW, "loss": {}, "loop": loop(2, accumulate=3)})
    train("cfw", once, tmp_path / "once", resume=False, say=quiet)
    train("cfw", thrice, tmp_path / "thrice", resume=False, say=quiet)
    expected = losses(tmp_path / "once" / "cfw")
    assert losses(tmp_path / "thrice" / "cfw") == pytest.approx(expected, rel=1e-4)


def test_recomputed_activations_change_no_number(tmp_path: Path) -> None:
    plain = settings_of(tmp_path, encoder={**ENCODER, "loop": loop(3)})
    again = settings_of(
        tmp_path, encoder={**ENCODER, "loop": loop(3), "checkpoint_activations": True}
    )
    train("encoder", plain, tmp_path / "plain", resume=False, say=quiet)
    train("encoder", again, tmp_path / "again", resume=False, say=quiet)
    assert losses(tmp_path / "plain" / "encoder") == losses(tmp_path / "again" / "encoder")


def test_stages_follow_each_other_and_finished_ones_are_left_out(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder={**ENCODER, "loop": loop(2)}, cfw=CFW)
    said: list[str] = []
    train_all(settings, tmp_path / "out", resume=False, say=said.append)
    assert f"cfw: starting from {tmp_path / 'out' / 'encoder' / 'weights'}" in said
    said.clear()
    train_all(settings, tmp_path / "out", resume=True, say=said.append)
    assert said == ["encoder: finished before", "cfw: finished before"]


def test_a_fresh_guidance_starts_as_none_and_fresh_fusion_takes_the_runs_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wider = replace(CONFIG, autoencoder=replace(AUTOENCODER, growth=6, fusion_blocks=1))
    monkeypatch.setitem(SIZES, "tiny", wider)
    settings = settings_of(
        tmp_path,
        encoder={**ENCODER, "fresh": True, "loop": loop(1, learning_rate=1e-12)},
        cfw={**CFW, "fresh": True},
    )
    train_all(settings, tmp_path / "out", resume=False, max_steps=1, say=quiet)
    guided = load_folder(tmp_path / "out" / "encoder" / "weights", CPU, torch.float32)
    for name, tensor in guided.unet.named_parameters():
        if ".modulation.gamma.weight" in name:
            assert float(tensor.abs().max()) < 1e-9
    fused = load_folder(tmp_path / "out" / "cfw" / "weights", CPU, torch.float32)
    released = fused.config.released_autoencoder
    assert (released.growth, released.fusion_blocks) == (6, 1)


def test_a_second_run_in_the_folder_is_refused_unless_it_resumes(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    out = tmp_path / "out"
    assert train("encoder", settings, out, resume=False, max_steps=2, say=quiet) == "limited"
    with pytest.raises(RunExists, match=r"checkpoint-000000002.*--resume"):
        train("encoder", settings, out, resume=False, say=quiet)
    assert train("encoder", settings, out, resume=True, max_steps=3, say=quiet) == "limited"


def test_kept_latents_of_other_settings_are_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    train("encoder", settings, tmp_path / "out", resume=False, max_steps=1, say=quiet)
    other = settings_of(tmp_path, seed=4, encoder=ENCODER)
    with pytest.raises(RunExists, match="other settings or weights"):
        train("encoder", other, tmp_path / "out", resume=True, say=quiet)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    with pytest.raises(InvalidRun, match=r"no table \[cfw\]"):
        train("cfw", settings, tmp_path / "out", resume=False)
    nowhere = settings.model_copy(update={"base": None})
    with pytest.raises(InvalidRun, match="starts from prior"):
        train("encoder", nowhere, tmp_path / "out", resume=False, say=quiet)
    data = settings.data.model_copy(update={"photographs": tmp_path / "none"})
    with pytest.raises(NoPhotographs, match=r"no folder .*none: make it with"):
        train(
            "encoder",
            settings.model_copy(update={"data": data}),
            tmp_path / "out",
            resume=False,
            say=quiet,
        )

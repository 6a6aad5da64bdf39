"""Stages from their settings to the weights they hand on."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.checkpoints.folder import load_folder
from models.config import ModelConfig
from tests.models.narrow import CONFIG, WITH_COMPACT
from tests.training.small_run import (
    CFW,
    CPU,
    DISTILL,
    ENCODER,
    TEACHER,
    VAE,
    changed_names,
    loop,
    losses,
    settings_of,
)
from training.config import InvalidRun, NoPhotographs, RunExists, RunSettings, StageName
from training.initial_weights import SIZES
from training.run import fix_slopes, train, train_all

pytestmark = pytest.mark.usefixtures("teacher")


def run_and_kill(settings: RunSettings, stage: StageName, out: Path, *, after: int) -> None:
    """Runs a stage in a process of its own and kills it once it has made so many steps."""
    code = (
        "import sys; from pathlib import Path\n"
        "from training.config import RunSettings\n"
        "from training.run import train\n"
        "settings = RunSettings.model_validate_json(sys.argv[1])\n"
        "hear = lambda line: print(line, flush=True)\n"
        "train(sys.argv[2], settings, Path(sys.argv[3]), resume=False, on_progress=hear)\n"
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


class Cut(Exception):
    """Ends a run in the middle, as a kill does: nothing more is written."""


def run_and_cut(settings: RunSettings, stage: StageName, out: Path, *, after: int) -> None:
    """As `run_and_kill`, without a process of its own."""

    def hear(line: str) -> None:
        if line.startswith(f"step {after} "):
            raise Cut

    with pytest.raises(Cut):
        train(stage, settings, out, resume=False, on_progress=hear)


@pytest.mark.parametrize(
    ("stage", "table", "config", "end"),
    [
        ("vae", VAE, WITH_COMPACT, run_and_kill),
        ("encoder", ENCODER, CONFIG, run_and_cut),
        ("distill", DISTILL, WITH_COMPACT, run_and_cut),
        ("cfw", CFW, CONFIG, run_and_cut),
        ("cfw", CFW, WITH_COMPACT, run_and_cut),
    ],
)
def test_a_killed_run_goes_on_at_the_same_losses_and_ends_with_the_same_weights(
    tmp_path: Path,
    stage: StageName,
    table: dict[str, Any],
    config: ModelConfig,
    end: Callable[..., None],
) -> None:
    settings = settings_of(tmp_path, config, teacher=TEACHER, **{stage: table})
    assert train(stage, settings, tmp_path / "whole", resume=False) == "finished"
    if (tmp_path / "whole" / "teacher").exists():
        # A process of its own has no stand-in for the teacher, and needs none for what is there.
        shutil.copytree(tmp_path / "whole" / "teacher", tmp_path / "cut" / "teacher")
    end(settings, stage, tmp_path / "cut", after=5)
    assert not (tmp_path / "cut" / stage / "finished").exists()
    lines: list[str] = []
    assert (
        train(stage, settings, tmp_path / "cut", resume=True, on_progress=lines.append)
        == "finished"
    )
    assert any("resuming after step" in line for line in lines)
    whole, cut = losses(tmp_path / "whole" / stage), losses(tmp_path / "cut" / stage)
    assert len(whole) == table["loop"]["steps"]
    assert whole == cut
    ends = [tmp_path / out / stage / "weights" for out in ("whole", "cut")]
    assert not changed_names(*ends)
    assert len({(end / "config.json").read_text() for end in ends}) == 1


@pytest.mark.parametrize(
    ("stage", "table", "config", "parts", "never"),
    [
        ("vae", VAE, WITH_COMPACT, ("autoencoder.encoder.", "autoencoder.decoder."), ".fusion."),
        ("prior", {"crop": 64, "loop": loop(2)}, CONFIG, ("unet.", "context"), ".gamma."),
        ("encoder", ENCODER, CONFIG, ("encoder.", "unet."), "autoencoder."),
        ("distill", DISTILL, WITH_COMPACT, ("encoder.", "unet.", "autoencoder.dec"), ".fusion."),
        ("cfw", CFW, CONFIG, ("autoencoder.decoder.fusion.",), ".conv_in."),
        ("cfw", CFW, WITH_COMPACT, ("autoencoder.decoder.fusion.",), ".decoder.head."),
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
    train(stage, settings, tmp_path / "out", resume=False, max_steps=2)
    names = changed_names(tmp_path / "base", tmp_path / "out" / stage / "weights")
    for part in parts:
        assert any(name.startswith(part) for name in names), part
    assert all(name.startswith(parts) and never not in name for name in names)
    if stage in ("encoder", "distill"):
        # Of the UNet what the encoder guides; the prior stays.
        assert all(".modulation." in name for name in names if name.startswith("unet."))


def test_fixed_slopes_change_no_number() -> None:
    torch.manual_seed(0)
    plain = nn.PReLU(8).requires_grad_(False)
    torch.nn.init.uniform_(plain.weight, -2, 2)
    fixed = copy.deepcopy(plain)
    fix_slopes(fixed)
    x = torch.randn(2, 8, 5, 5)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(i) for layer, i in zip((plain, fixed), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    gradients = [torch.autograd.grad(o.sum(), i) for o, i in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_recomputed_activations_change_no_number(tmp_path: Path) -> None:
    plain = settings_of(tmp_path, encoder={**ENCODER, "loop": loop(2)})
    again = settings_of(
        tmp_path, encoder={**ENCODER, "loop": loop(2), "checkpoint_activations": True}
    )
    train("encoder", plain, tmp_path / "plain", resume=False)
    train("encoder", again, tmp_path / "again", resume=False)
    assert losses(tmp_path / "plain" / "encoder") == losses(tmp_path / "again" / "encoder")


def test_stages_follow_each_other_and_finished_ones_are_left_out(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path, encoder={**ENCODER, "loop": loop(1)}, cfw={**CFW, "loop": loop(1)}
    )
    lines: list[str] = []
    train_all(settings, tmp_path / "out", resume=False, on_progress=lines.append)
    assert f"cfw: starting from {tmp_path / 'out' / 'encoder' / 'weights'}" in lines
    lines.clear()
    train_all(settings, tmp_path / "out", resume=True, on_progress=lines.append)
    assert lines == ["encoder: finished before", "cfw: finished before"]


def test_a_fresh_guidance_starts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", CONFIG)
    table = {**ENCODER, "fresh": True, "loop": loop(1, learning_rate=1e-12)}
    settings = settings_of(tmp_path, encoder=table)
    train("encoder", settings, tmp_path / "out", resume=False)
    guidance = load_folder(tmp_path / "out" / "encoder" / "weights", CPU, torch.float32)
    for name, tensor in guidance.unet.named_parameters():
        if ".modulation.gamma.weight" in name:
            assert float(tensor.abs().max()) < 1e-9


def test_a_second_run_in_the_folder_is_refused_unless_it_resumes(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    out = tmp_path / "out"
    assert train("encoder", settings, out, resume=False, max_steps=2) == "limited"
    with pytest.raises(RunExists, match=r"checkpoint-000000002.*--resume"):
        train("encoder", settings, out, resume=False)
    assert train("encoder", settings, out, resume=True, max_steps=3) == "limited"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    with pytest.raises(InvalidRun, match=r"no table \[cfw\]"):
        train("cfw", settings, tmp_path / "out", resume=False)
    nowhere = settings.model_copy(update={"base": None})
    with pytest.raises(InvalidRun, match="starts from prior"):
        train("encoder", nowhere, tmp_path / "out", resume=False)
    data = settings.data.model_copy(update={"photographs": tmp_path / "none"})
    with pytest.raises(NoPhotographs, match=r"no folder .*none: make it with"):
        train(
            "encoder",
            settings.model_copy(update={"data": data}),
            tmp_path / "out",
            resume=False,
        )

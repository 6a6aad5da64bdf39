"""The configuration of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import InvalidRun, read_settings
from training.degradation import RoundSettings

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = """
[data]
photographs = "p"
[encoder]
crop = 64
[encoder.loop]
steps = 3
batch = 2
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_read(path: Path) -> None:
    assert read_settings(path).stages


def test_the_fine_tuning_defaults_are_the_papers(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, SMALL))
    assert settings.stages == ("encoder",)
    assert settings.data.mix == {"paper": 1.0}
    assert settings.encoder is not None
    loop = settings.encoder.loop
    assert (loop.learning_rate, loop.schedule, loop.accumulate) == (5e-5, "constant", 1)


def test_a_degradation_of_ones_own_is_a_table_with_the_papers_defaults(tmp_path: Path) -> None:
    text = SMALL.replace('"p"', '"p"\nmix = {night = 1, paper = 2}')
    text += "[data.degradations.night.first]\ngaussian_sigma = [10, 40]\n"
    settings = read_settings(write(tmp_path, text))
    night = settings.data.degradations["night"]
    assert night.first == RoundSettings(gaussian_sigma=(10, 40))
    assert night.final_sinc == 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("crop = 64", "crop = 60"), "encoder.crop: Input should be a multiple of 64"),
        (("steps = 3", "stepps = 3"), "encoder.loop.stepps: there is no such key"),
        (("steps = 3", ""), "encoder.loop.steps: Field required"),
        (("[data]", "colour = 1\n[data]"), "colour: there is no such key"),
        (('"p"', '"p"\nmix = {fog = 1}'), "mix names fog; there are bicubic, mild, paper"),
        (
            ("[encoder]", "[data.degradations.a.first]\nfog = 1\n[encoder]"),
            "data.degradations.a.first.fog: there is no such key",
        ),
        (
            ("[encoder]", "[data.degradations.a.first]\nblur = 2\n[encoder]"),
            "data.degradations.a.first.blur: Input should be less than or equal to 1",
        ),
        (("crop = 64", "crop = 64\nteacher_share = 0.5"), "teacher_share need a table [teacher]"),
        (
            (
                "[encoder]",
                "[distill]\nloss = {}\nloop = {steps = 1, batch = 1}\ncrop = 64\n[encoder]",
            ),
            "distill and teacher_share need a table [teacher]",
        ),
        (
            ("[data]", '[teacher]\nnetwork = "t"\ncrop = 60\nbatches = 1\n[data]'),
            "teacher.crop: Input should be a multiple of 64",
        ),
        (
            (
                "[encoder]\ncrop = 64",
                "[vae]\ncrop = 60\n[vae.loop]\nsteps = 1\nbatch = 1\n[encoder]",
            ),
            "vae.crop: Input should be a multiple of 8",
        ),
        (
            ("steps = 3", 'steps = 3\nfactors = {"unet." = 0}'),
            "loop.factors.unet.: Input should be",
        ),
        (("[data]", "[data"), "is not TOML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = write(tmp_path, SMALL.replace(*change))
    with pytest.raises(InvalidRun) as error:
        read_settings(path)
    assert message in str(error.value)
    assert "run.toml" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match=r"none\.toml cannot be read: No such file"):
        read_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("perceptual = 1", "the encoder learns in this stage"),
        ('perceptual_heads = "h"', "perceptual_heads needs perceptual_network"),
    ],
)
def test_a_perceptual_term_without_its_network_is_refused(
    tmp_path: Path, loss: str, message: str
) -> None:
    text = SMALL.replace("[encoder", "[vae") + f"[vae.loss]\n{loss}\n"
    with pytest.raises(InvalidRun, match=message):
        read_settings(write(tmp_path, text))

"""The experiments: what they look at, what they leave out, and that they leave nothing behind."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.images import BadImages, Pixels, degrade_pixels, tensor_of
from models.networks.unet import FeatureModulation
from models.pipeline import StableSR
from models.sampling import StepRequest
from models.tiling import TileGrid
from tests.evaluation.conftest import NARROWER, NATIVE, crop
from tests.models import narrow
from tools.figures import __main__ as command
from tools.figures import studio
from tools.figures.ablations import Ablation, Worth, ablations
from tools.figures.observation import encoder_at, signal_to_noise, similarity, without_modulation
from tools.figures.seams import borders, seam_ratio, tiles_alone


@pytest.fixture
def model() -> StableSR:
    """Networks whose modulation does something; a fresh one does nothing."""
    torch.manual_seed(1)
    fresh = StableSR.load(NARROWER, NATIVE, fuse=False)
    for module in modulations(fresh):
        for conv in (module.gamma, module.beta):
            nn.init.normal_(conv.weight, std=0.3)
    return fresh


def modulations(sr: StableSR) -> list[FeatureModulation]:
    return [m for m in sr.networks.unet.modules() if isinstance(m, FeatureModulation)]


def hooks(sr: StableSR) -> int:
    return sum(len(m._forward_hooks) for m in sr.networks.modules())


def latents(sr: StableSR) -> torch.Tensor:
    channels = sr.networks.config.unet.in_channels
    return torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def request(sr: StableSR, timestep: int) -> StepRequest:
    both = latents(sr)
    context = sr.networks.context.detach()
    return StepRequest(both[:1], both[1:], timestep, context, 0, 1)


def test_a_modulation_that_does_nothing_has_similarity_one_and_another_has_less(
    model: StableSR,
) -> None:
    both = latents(model)
    with torch.inference_mode():
        different = similarity(model, both, both, [0, 999])
    assert set(different.by_size) == {1, 2, 4, 8}
    assert all(value < 0.999 for value in different.mean)
    for module in modulations(model):
        for conv in (module.gamma, module.beta):
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
    with torch.inference_mode():
        still = similarity(model, both, both, [0, 999])
    assert still.mean == pytest.approx([1, 1], abs=1e-5)
    assert hooks(model) == 0


def test_signal_to_noise_falls_to_that_of_the_schedules_end() -> None:
    snr = signal_to_noise([0, 500, 999])
    assert snr[0] > snr[1] > snr[2]
    assert snr[2] == pytest.approx(0.00468, rel=0.01)


def test_an_encoder_told_the_true_timestep_predicts_as_ever_and_another_does_not(
    model: StableSR,
) -> None:
    step_request = request(model, 700)
    [true] = model.predict([step_request])
    [same] = encoder_at(model, 700)([step_request])
    [other] = encoder_at(model, 0)([step_request])
    torch.testing.assert_close(same, true, rtol=0, atol=1e-6)
    assert not torch.allclose(other, true, atol=1e-4)


def test_without_modulation_the_input_does_not_matter_and_afterwards_it_does_again(
    model: StableSR,
) -> None:
    step_request = request(model, 700)
    elsewhere = replace(step_request, lr=step_request.lr + 1)
    [before] = model.predict([step_request])
    with without_modulation(model.networks.unet):
        [plain], [other] = model.predict([step_request]), model.predict([elsewhere])
    torch.testing.assert_close(plain, other, rtol=0, atol=0)
    assert not torch.allclose(plain, before, atol=1e-4)
    torch.testing.assert_close(model.predict([step_request])[0], before, rtol=0, atol=0)
    assert hooks(model) == 0


def smooth() -> Pixels:
    return crop("kitten", 256, 256)


def test_a_seam_that_is_drawn_into_a_picture_raises_its_ratio_and_a_subjects_edge_does_not() -> (
    None
):
    picture = smooth()
    seam = picture.copy()
    seam[:, 128:] = np.minimum(seam[:, 128:].astype(int) + 20, 255).astype(np.uint8)
    assert seam_ratio(picture, picture, [], [128]) == pytest.approx(1)
    assert seam_ratio(seam, picture, [], [128]) > 1.5
    assert seam_ratio(seam, picture, [128], []) == pytest.approx(1, abs=0.05)
    # An edge that the reference has as well is no seam.
    assert seam_ratio(seam, seam, [], [128]) == pytest.approx(1)
    with pytest.raises(ValueError, match="No border"):
        seam_ratio(picture, picture, [4], [])


def test_borders_are_where_tiles_begin_and_end_within_the_canvas() -> None:
    assert borders(TileGrid(32, 64, 32, 0), 8) == ([], [256])
    assert borders(TileGrid(64, 64, 32, 16), 8) == ([128, 256, 384], [128, 256, 384])


def test_tiles_upscaled_alone_are_pasted_in_their_places(sr: StableSR) -> None:
    lr = tensor_of(crop("petra", 64, 128))
    options = narrow.parameters(steps=1, seed=5)
    result = tiles_alone(sr, lr, options, 64)
    assert result.shape == (1, 3, 256, 512)
    second = sr.upscale(lr[..., 64:], options.model_copy(update={"seed": 6}))
    torch.testing.assert_close(result[..., 256:], second, rtol=0, atol=0)


def test_a_difference_counts_when_it_exceeds_twice_its_error() -> None:
    assert Worth("psnr", 25.0, 24.0, 0.4).measurable
    assert not Worth("psnr", 25.0, 24.0, 0.6).measurable


def test_every_part_is_measured_at_both_weights(sr: StableSR) -> None:
    original = crop("petra", 256, 256)
    pictures = [("petra", degrade_pixels(original, "petra", 4, "mild", 0), original)]
    results = ablations(sr, pictures, narrow.parameters(steps=1))
    assert [(a.part, a.weight) for a in results] == [
        ("prior and guidance", "0"),
        ("prior and guidance", "0.5"),
        ("time awareness", "0"),
        ("time awareness", "0.5"),
        ("modulation", "0"),
        ("modulation", "0.5"),
        ("CFW", "0.5 against 0"),
        ("CFW", "1 against 0"),
        ("colour correction", "0"),
        ("colour correction", "0.5"),
        ("aggregation, tiles of 16", "0"),
        ("aggregation, tiles of 16", "0.5"),
    ]
    scores = ["psnr", "ssim", "niqe", "lattice", "phase", "seam"]
    assert [w.score for w in results[-1].worths] == scores
    # One picture has no spread, and so shows nothing.
    assert not any(w.measurable for a in results for w in a.worths)
    assert hooks(sr) == 0


def test_one_command_draws_every_figure_and_the_page_names_each(
    sr: StableSR, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few points of each curve: what is drawn is the same.
    monkeypatch.setattr(studio, "POINTS", 3)
    monkeypatch.setattr(studio, "TIMES", (0,))
    monkeypatch.setattr(studio, "WEIGHTS", (0.0, 1.0))
    gain = Ablation("gained", "0", [Worth("psnr", 25, 24, 0.1), Worth("niqe", 5, 4, 0.1)])
    vain = Ablation("vain", "0.5", [Worth("psnr", 25, 24, 0.6), Worth("seam", 1.0, 1.1, 0.2)])
    monkeypatch.setattr(command, "ablations", lambda *arguments: [gain, vain])
    lines: list[str] = []
    command.draw(
        sr, originals, tmp_path, count=1, longest=4, subject="petra", on_progress=lines.append
    )
    page = (tmp_path / "figures.md").read_text()
    names = set(re.findall(r"\(images/(.*?)\)", page))
    assert names == {p.name for p in (tmp_path / "images").iterdir()}
    for name in names:
        path = tmp_path / "images" / name
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width > 500
        else:
            assert path.read_text().startswith("<?xml")
    assert "$" not in page.replace("$ make", "")
    assert "\npetra.\n" in page
    assert "| gained | 0 | 25.00/24.00 (+1.00±0.10) |  |" in page
    assert "| better PSNR; worse NIQE |" in page
    assert page.count("| nothing measurable |") == 1
    assert lines[-1] == "4 steps: petra"
    with pytest.raises(BadImages, match="no picture called 'absent'"):
        command.draw(sr, originals, tmp_path, subject="absent")


def test_a_folder_that_is_not_there_is_named(
    sr: StableSR,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(StableSR, "from_preset", lambda *_, **__: sr)
    assert command.main(["--hr", str(tmp_path / "absent"), "--out", str(tmp_path)]) == 1
    assert "There is no folder" in capsys.readouterr().err

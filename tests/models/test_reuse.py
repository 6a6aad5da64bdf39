"""Deep features that serve several steps: where they are exact, whose they are, when they go."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoints.folder import random_networks
from models.errors import InvalidOption
from models.folding import fold
from models.options import Options
from models.pipeline import StableSR
from models.presets import get_preset
from models.sampling import StepRequest, drive_all
from tests.models import narrow
from tests.models.test_plan import PLENTY, planned

CPU = torch.device("cpu")
WIDE = replace(
    narrow.CONFIG,
    unet=replace(narrow.CONFIG.unet, widths=(8, 16, 16, 24)),
    encoder=replace(narrow.CONFIG.encoder, widths=(8, 8, 16, 8)),
)


@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_with_the_features_of_its_own_step_the_finest_level_gives_all(folded: bool) -> None:
    networks = random_networks(WIDE, CPU, torch.float64)
    networks = fold(networks) if folded else networks
    generator = torch.Generator().manual_seed(0)
    noisy, lr = torch.randn(2, 3, 4, 16, 24, generator=generator, dtype=torch.float64)
    t = torch.tensor([900, 40, 7])
    context = torch.randn(3, 2, 8, generator=generator, dtype=torch.float64)
    for given in (None, context):
        whole = networks.denoise(noisy, lr, t, given)
        kept, deep = networks.denoise_keeping(noisy, lr, t, given)
        assert torch.equal(kept, whole)
        assert deep.shape == (3, 16, 8, 12)
        finest = networks.denoise_finest(noisy, lr, t, given, deep)
        assert float((finest - whole).norm() / whole.norm()) < 1e-12
        other = networks.denoise_finest(noisy, lr, t, given, deep.flip(0))
        assert float((other - whole).norm() / whole.norm()) > 1e-6


@pytest.fixture(scope="module")
def sr() -> StableSR:
    return StableSR(random_networks(WIDE, CPU, torch.float32), narrow.PRESET, CPU, torch.float32)


IMAGE = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(3))


def latent(sr: StableSR, options: Options) -> Tensor:
    with sr.prepare(IMAGE, options) as prepared:
        [found] = drive_all([sr.sample(prepared, options)], sr.predict, max_tiles=4)
    return found


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_steps_that_share_features_are_near_those_that_do_not(sr: StableSR) -> None:
    exact = latent(sr, Options(steps=6))
    shared = [latent(sr, Options(steps=6, reuse_every=every)) for every in (2, 3)]
    assert torch.equal(latent(sr, Options(steps=6, reuse_every=1)), exact)
    assert 1e-6 < relative(shared[0], exact) < 0.5
    assert 1e-6 < relative(shared[1], exact) < 0.5
    assert torch.equal(latent(sr, Options(steps=6, reuse_every=2)), shared[0])


def test_every_nth_step_computes_all_and_the_others_the_finest_level(
    sr: StableSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def note(name: str) -> None:
        real = getattr(sr.networks, name)

        def noted(*given: Tensor) -> Any:
            calls.append(name)
            return real(*given)

        monkeypatch.setattr(sr.networks, name, noted)

    for name in ("denoise", "denoise_keeping", "denoise_finest"):
        note(name)
    options = Options(scale=1, steps=5, reuse_every=2)
    with sr.prepare(torch.rand(1, 3, 64, 64), options) as prepared:
        drive_all([sr.sample(prepared, options)], sr.predict, max_tiles=1)
    full, finest = "denoise_keeping", "denoise_finest"
    assert calls == [full, finest, full, finest, full]


def test_jobs_that_share_calls_keep_their_own_features(sr: StableSR) -> None:
    asked = [
        Options(steps=6, seed=1, reuse_every=2),
        Options(steps=4, seed=2, reuse_every=3),
        Options(steps=5, seed=3),
    ]
    alone = [latent(sr, options) for options in asked]
    kinds: list[set[bool | None]] = []

    def predict(requests: list[StepRequest]) -> list[Tensor]:
        kinds.append({r.share.full if r.share is not None else None for r in requests})
        return sr.predict(requests)

    prepared = [sr.prepare(IMAGE, options) for options in asked]
    samplers = [sr.sample(p, options) for p, options in zip(prepared, asked, strict=True)]
    together = drive_all(samplers, predict, max_tiles=64)  # type: ignore[arg-type]  # a list it is
    assert {True, False, None} in kinds, "no call had tiles of all kinds"
    for one, other in zip(together, alone, strict=True):
        assert relative(one, other) < 1e-5


def test_the_features_go_with_the_sampler(sr: StableSR) -> None:
    options = Options(steps=3, reuse_every=2)
    with sr.prepare(IMAGE, options) as prepared:
        sampler = sr.sample(prepared, options)
        share = next(sampler).part(0, 1).share
        assert share is not None
        features = weakref.ref(share.features)
        del share
        assert features() is not None
        sampler.close()
        gc.collect()
        assert features() is None


def test_a_plan_counts_the_features_of_all_tiles() -> None:
    for device in ("cpu", "cuda"):
        with_them = planned(2048, PLENTY, device, Options(reuse_every=2))
        without = planned(2048, PLENTY, device)
        more = sum(with_them.peaks.denoise) - sum(without.peaks.denoise)
        assert with_them.tiles > 1
        # 640 channels of 32 x 32 cells, two bytes each.
        assert more == with_them.tiles * 640 * 32 * 32 * 2
        assert with_them.peaks.decode == without.peaks.decode
    assert get_preset("stablesr-512").tile == 64


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(InvalidOption, match="reuse_every is 0, but must be at least 1"):
        Options(reuse_every=0)

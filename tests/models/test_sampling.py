"""The sampler as a generator, driven alone and with others, around a made-up network."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.parameters import SamplerName
from models.sampling import Sampler, Step, StepRequest, drive_all, sample
from models.schedulers import make_scheduler
from models.tiling import TileGrid
from tests.models.driving import drive

CONTEXT, NEGATIVE = torch.full((1, 2, 3), 0.5), torch.full((1, 2, 3), -0.25)


class Network:
    """Answers each tile by itself; remembers how many tiles each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        self.calls.append(sum(len(r) for r in requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: StepRequest) -> Tensor:
        assert request.context is not None  # every job here has one
        prompt = request.context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return 0.7 * request.noisy + 0.1 * request.lr + request.timestep / 5000 + prompt

    def alone(self, step: Step) -> Tensor:
        [answer] = self([step.part(0, len(step))])
        return answer


def job(
    seed: int, name: SamplerName, steps: int, size: tuple[int, int], guidance: float = 1.0
) -> Sampler:
    generator = torch.Generator().manual_seed(seed)
    grid = TileGrid(*size, tile=4, overlap=2)

    def noise() -> Tensor:
        return torch.randn(1, 4, *size, generator=generator)

    return sample(
        noise(),
        noise(),
        make_scheduler(name, steps, "v_prediction"),
        grid,
        noise,
        CONTEXT,
        NEGATIVE if guidance > 1 else None,
        guidance,
    )


def jobs() -> list[Sampler]:
    return [
        job(1, "ddpm", 3, (9, 7)),
        job(2, "dpmpp", 5, (4, 4)),
        job(3, "unipc", 2, (5, 12), guidance=3.0),
        job(4, "ddim", 4, (4, 9)),
    ]


@pytest.mark.parametrize("max_tiles", [1, 3, 8, 100])
def test_samplers_run_together_end_as_each_does_alone(max_tiles: int) -> None:
    network = Network()
    together = drive_all(jobs(), network, max_tiles)
    assert max(network.calls) <= max_tiles
    for latent, sampler in zip(together, jobs(), strict=True):
        torch.testing.assert_close(latent, drive(sampler, Network().alone), rtol=0, atol=1e-6)


def test_the_tiles_of_several_samplers_share_calls() -> None:
    network = Network()
    drive_all([job(seed, "ddpm", 2, (4, 4)) for seed in range(5)], network, 4)
    assert network.calls == [4, 1, 4, 1]


def test_no_samplers_give_no_latents() -> None:
    assert drive_all([], Network(), 4) == []


def test_guidance_leads_away_from_the_negative_context() -> None:
    """One step ends where the prediction says, so the guided end is linear in the scale."""
    ends = []
    for guidance in (2.0, 3.0, 4.0):
        [latent] = drive_all([job(5, "ddpm", 1, (4, 4), guidance)], Network(), 8)
        ends.append(latent)
    torch.testing.assert_close(ends[2] - ends[1], ends[1] - ends[0])
    assert float((ends[1] - ends[0]).abs().min()) > 0.1

"""Plans: what is chosen for which memory, and whether the figures are true."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.checkpoints.files import preset_folder
from models.checkpoints.folder import Record, describe, write_config
from models.config import ModelConfig, TextConfig
from models.errors import InvalidOption, NotEnoughMemory
from models.layout import Layout
from models.memory import Memory, MemoryBudget
from models.networks.bundle import Networks
from models.parameters import UpscaleParameters, preset_parameters
from models.plan import Plan, Planner, is_small, tile_bytes, tile_flops
from models.presets import get_preset

GB = 10**9
PLENTY = Memory(100 * GB, 100 * GB, 1000 * GB)
FULL = ModelConfig()
PRESET = get_preset("stablesr-512")


@cache
def networks_of(config: ModelConfig) -> Networks:
    with torch.device("meta"):
        return Networks(config)


def planner_of(
    device: str = "cuda",
    config: ModelConfig = FULL,
    dtype: torch.dtype = torch.bfloat16,
    **budget: Any,
) -> Planner:
    return Planner(networks_of(config), PRESET, dtype, torch.device(device), MemoryBudget(**budget))


def planned(
    side: int,
    memory: Memory,
    device: str = "cuda",
    options: UpscaleParameters | None = None,
    **kind: Any,
) -> Plan:
    """Of a square result of full-size networks, by default in bfloat16."""
    planner = planner_of(device, **kind)
    return planner.fit((side // 4, side // 4), options or preset_parameters(PRESET), memory)


def test_a_text_tower_takes_the_room_of_its_weights() -> None:
    config = replace(FULL, text=TextConfig())
    weights = planner_of(config=config).weights
    assert weights.text == pytest.approx(0.68 * GB, rel=0.02)
    assert weights._replace(text=0) == planner_of().weights
    plain = planned(512, PLENTY)
    resident = planned(512, PLENTY, config=config)
    waiting = planned(512, PLENTY, config=config, offload=True)
    away = planned(512, PLENTY, offload=True)
    for stage in plain.peaks:
        assert resident.peaks[stage].device - plain.peaks[stage].device == weights.text
        assert waiting.peaks[stage].host - away.peaks[stage].host == weights.text
    assert waiting.peaks["denoise"].device == away.peaks["denoise"].device


def test_converted_weights_are_planned_with_their_own_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    folder, cpu = preset_folder(PRESET), torch.device("cpu")

    def config_of_preset() -> ModelConfig:
        return Planner.of_preset(PRESET, torch.float16, cpu, MemoryBudget(), PLENTY).config

    assert config_of_preset() == FULL
    folder.mkdir()
    config, record = replace(FULL, text=TextConfig()), Record("a", "b", (), True, "", "", (), ())
    write_config(folder, config, record)
    assert config_of_preset() == config


def test_half_precision_is_planned_with_less_memory_than_float32() -> None:
    for device in ("cpu", "cuda"):
        half = planned(1024, PLENTY, device).peaks
        full = planned(1024, PLENTY, device, dtype=torch.float32).peaks
        assert all(sum(half[stage]) < sum(full[stage]) for stage in half)


def test_the_arithmetic_is_the_published_one() -> None:
    """Cost at 64 x 64 latents, a product and a sum being two."""
    tile = tile_flops(FULL, 64, 64)
    assert tile / 1e12 == pytest.approx(0.965, abs=0.001)
    chosen = planned(512, PLENTY)
    flops = planner_of().flops(chosen, preset_parameters(PRESET, steps=200))
    assert flops["step"] == tile
    assert flops["encode"] / 1e12 == pytest.approx(1.12, abs=0.01)
    assert flops["decode"] / 1e12 == pytest.approx(4.97, abs=0.04)
    assert flops["total"] == flops["encode"] + 200 * tile + flops["decode"]
    options = preset_parameters(PRESET, steps=200, fidelity_weight=0.0)
    plain = planner_of().flops(chosen, options)
    assert plain["decode"] < 0.51 * flops["decode"]


@pytest.mark.parametrize(("side", "tiles"), [(512, 1), (1024, 9), (2048, 49), (4096, 225)])
def test_tiles_are_counted_as_published(side: int, tiles: int) -> None:
    assert planned(side, PLENTY).layout.tiles == tiles
    guided = preset_parameters(PRESET, prompt="a cat", guidance_scale=5.0)
    assert planned(side, PLENTY, options=guided).layout.tiles == 2 * tiles


def test_with_room_everything_stays_on_the_device() -> None:
    chosen = planned(4096, PLENTY)
    assert (chosen.strips.keep, chosen.tile_batch, chosen.offload) == ("device", 8, False)
    assert planned(512, PLENTY).tile_batch == 1


def test_maps_move_to_the_host_and_to_the_disk_as_memory_gets_less() -> None:
    assert planned(4096, Memory(6 * GB, 32 * GB, 100 * GB)).strips.keep == "host"
    assert planned(4096, Memory(6 * GB, 4 * GB, 100 * GB)).strips.keep == "disk"
    # On a processor the device's memory is the host's.
    assert planned(4096, Memory(0, 24 * GB, 100 * GB), "cpu").strips.keep == "device"
    assert planned(4096, Memory(0, 6 * GB, 100 * GB), "cpu").strips.keep == "disk"


def test_strips_and_batches_shrink_before_a_plan_is_given_up() -> None:
    small = planned(8192, Memory(0, 4_700_000_000, 100 * GB), "cpu")
    large = planned(8192, PLENTY, "cpu")
    assert small.tile_batch <= large.tile_batch
    assert all(peak.host <= 4_700_000_000 for peak in small.peaks.values())


@pytest.mark.parametrize("gigabytes", [3, 4, 6, 8, 12])
@pytest.mark.parametrize("side", [512, 2048, 4096])
def test_cards_of_few_gigabytes_have_a_plan_that_keeps_within_them(
    gigabytes: int, side: int
) -> None:
    memory = Memory(gigabytes * GB, 12 * GB, 100 * GB)
    chosen = planned(side, memory)
    for peak in chosen.peaks.values():
        assert all(need <= there for need, there in zip(peak, memory, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("side", [128, 512])
def test_the_calls_for_other_images_are_counted_at_their_size_and_not_at_this_images(
    device: str, side: int
) -> None:
    alone = planned(side, PLENTY, device, tile_batch=8).peaks
    shared = planned(side, PLENTY, device, concurrent=True, tile_batch=8).peaks
    tile = tile_bytes(FULL.unet, 64, 64, torch.bfloat16)
    for stage in ("encode", "decode"):
        assert sum(shared[stage]) - sum(alone[stage]) >= 8 * tile


@pytest.mark.parametrize(
    ("height", "width", "scale", "small"),
    [(128, 128, 4.0, True), (1, 1, 1.0, True), (128, 256, 4.0, True), (128, 257, 4.0, False)],
)
def test_an_image_of_two_native_canvases_at_most_steps_in(
    height: int, width: int, scale: float, small: bool
) -> None:
    layout = Layout.of((height, width), preset_parameters(PRESET, scale=scale))
    assert is_small(layout.canvas, PRESET) is small


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_a_large_image_counts_one_that_steps_in(device: str) -> None:
    def more(side: int, stage: str) -> int:
        alone = planned(side, PLENTY, device, tile_batch=8).peaks
        beside = planned(side, PLENTY, device, concurrent=True, tile_batch=8).peaks
        return sum(beside[stage]) - sum(alone[stage])

    for stage in ("encode", "decode"):
        guest = more(2048, stage) - more(512, stage)
        # What encoding or decoding 512 x 1024 takes beside the weights: maps of 128 channels.
        assert 2 * 128 * 512 * 1024 * 2 <= guest <= 1.5 * GB
    # The guest's own network calls are counted already.
    assert more(2048, "denoise") <= more(512, "denoise")


def test_networks_take_turns_on_a_card_that_does_not_hold_all_of_them() -> None:
    memory = Memory(2_400_000_000, 16 * GB, 100 * GB)
    chosen = planned(512, memory)
    assert chosen.offload
    weights = planner_of().weights
    assert chosen.peaks["encode"].device < weights.denoiser
    assert chosen.peaks["denoise"].device < sum(weights) + GB
    assert chosen.peaks["denoise"].host > sum(weights)
    assert not planner_of("cpu").needs_offload(memory)


def test_what_is_decided_already_stays_so() -> None:
    chosen = planned(2048, PLENTY, tile_batch=3, decode_tile=24, offload=True)
    assert (chosen.tile_batch, chosen.strips.height, chosen.offload) == (3, 24, True)
    zero: dict[str, Any] = {"tile_batch": 0, "decode_tile": 0, "memory_limit": 0}
    for name in zero:
        with pytest.raises(InvalidOption, match=f"{name} is 0, but must be at least 1"):
            MemoryBudget(**{name: zero[name]})


def test_without_a_plan_it_is_said_what_is_needed_and_what_there_is() -> None:
    with pytest.raises(
        NotEnoughMemory,
        match=r"1024 x 1024 pixels at scale 4.* needs at least \d\.\d\d GB of the host's memory "
        r"to .*, where 2\.00 GB can be had",
    ):
        planned(4096, Memory(0, 2 * GB, 100 * GB), "cpu")


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Bytes of tensors that are alive, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata)
                    self.peak = max(self.peak, sum(self.sizes.values()))
        return out


def tiny_config() -> ModelConfig:
    return describe(preset_folder(get_preset("tiny")))[0]


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_what_a_tile_takes_is_what_a_trace_of_the_networks_finds(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config() if size == "tiny" else FULL
    dtype, tiles = torch.bfloat16, 2
    with torch.device("meta"):
        networks = Networks(config).to(dtype)
        noisy = torch.empty(tiles, config.unet.in_channels, 64, 64, dtype=dtype)
        shape = (tiles, config.context_tokens, config.unet.context_width)
        context, times = torch.empty(shape, dtype=dtype), torch.empty(tiles)
    # Kernels of real devices hold no scores; the one for meta tensors would.
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda query, *given, **more: torch.empty_like(query),
    )
    with torch.no_grad(), Live() as live:
        live.sizes.update({p.untyped_storage()._cdata: 0 for p in networks.parameters()})
        networks.unet(noisy, times, context, networks.encoder(noisy, times))
    estimated = tiles * tile_bytes(config.unet, 64, 64, dtype)
    assert live.peak <= estimated <= 1.4 * live.peak

"""`stablesr plan`: what an image would take, before anyone pays for it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cli.errors import JobFailed
from cli.extras import require_torch
from cli.settings import BadSettings
from jobs.settings import Settings

if TYPE_CHECKING:  # torch takes seconds; what is checked before needs none of it
    from models.memory import Memory
    from models.options import Options
    from models.plan import Plan

__all__ = ["run"]

PLACES = {"device": "on the device", "host": "in the host's memory", "disk": "on disk"}


def run(
    size: str,
    settings: Settings,
    *,
    scale: float | None,
    steps: int | None,
    fidelity_weight: float | None,
    overlap: int | None,
    as_json: bool,
) -> None:
    """Prints the plan that the settings' preset and device would follow for an input of this size
    (WIDTHxHEIGHT, px); None: the defaults.

    Raises:
        BadSettings: the size is none, or a value is not possible.
        JobFailed: no plan fits.
    """
    sides = re.fullmatch(r"([1-9]\d{0,8})[xX]([1-9]\d{0,8})", size)
    if sides is None:
        raise BadSettings(f"The size is {size!r}, but must be WIDTHxHEIGHT, such as 640x480.")
    require_torch()
    from models.errors import InvalidOption, ModelError
    from models.options import Options
    from models.presets import get_preset
    from worker.errors import NotStarted

    preset = get_preset(settings.preset)
    try:
        options = Options(
            fidelity_weight=preset.fidelity_weight if fidelity_weight is None else fidelity_weight,
            scale=Options.scale if scale is None else scale,
            steps=preset.steps if steps is None else steps,
            tile_overlap=overlap,
        )
        plan, memory, flops = _planned(settings, int(sides[2]), int(sides[1]), options)
    except (NotStarted, InvalidOption) as error:
        raise BadSettings(str(error)) from error
    except ModelError as error:
        raise JobFailed(str(error)) from error
    if as_json:
        print(json.dumps(_facts(plan, memory, flops), indent=2))
    else:
        _show(plan, flops)


def _planned(
    settings: Settings, height: int, width: int, options: Options
) -> tuple[Plan, Memory, dict[str, int]]:
    """The plan, the memory that there was for it, and the arithmetic."""
    from models.estimate import Estimate
    from models.memory import Memory, MemoryBudget, resident
    from models.plan import plan
    from models.presets import get_preset
    from worker.device import choose_device, choose_dtype, named_device, resources_of

    preset, limit = get_preset(settings.preset), settings.memory_limit
    # With a limit, that is what the device has, which then need not be in this machine.
    device = (choose_device if limit is None else named_device)(settings.device)
    here = device if limit is None else named_device("cpu")
    memory = MemoryBudget(here, settings.scratch).free()
    if limit is not None and device.type == "cuda":
        memory = Memory(limit, memory.host, memory.disk)
    elif limit is not None:
        # Python and the libraries take as much of it as in this process.
        memory = Memory(0, limit - resident(), memory.disk)
    estimate = Estimate.of_preset(preset, choose_dtype(settings.dtype, device), device, memory)
    resources = resources_of(settings, jobs=1)
    chosen = plan(estimate, preset, (height, width), options, memory, resources)
    return chosen, memory, estimate.flops(chosen.layout, chosen.pieces, chosen.tiles, options)


def _facts(plan: Plan, memory: Memory, flops: dict[str, int]) -> dict[str, Any]:
    layout = plan.layout
    return {
        "input": list(layout.source[::-1]),
        "result": list(layout.size[::-1]),
        "canvas": list(layout.canvas[::-1]),
        "latent": [layout.grid.width, layout.grid.height],
        "tile": layout.grid.tile,
        "overlap": layout.grid.overlap,
        "tiles": plan.tiles,
        "tile_batch": plan.tile_batch,
        "decode_tile": plan.pieces.rows,
        "keep": plan.pieces.keep,
        "offload": plan.offload,
        "memory_bytes": memory._asdict(),
        "peak_bytes": {stage: peak._asdict() for stage, peak in plan.peaks._asdict().items()},
        "flops": flops,
    }


def _show(plan: Plan, flops: dict[str, int]) -> None:
    from models.memory import in_words

    layout, grid, steps = plan.layout, plan.layout.grid, flops["steps"]
    (height, width), (out_height, out_width) = layout.source, layout.size
    # What was asked for, and so on the standard output, unlike what other commands say.
    console = Console(highlight=False)
    console.print(
        f"{width} x {height} -> {out_width} x {out_height} pixels"
        + (
            f", computed at {layout.canvas[1]} x {layout.canvas[0]}"
            if layout.canvas != layout.size
            else ""
        )
        + f": {plan.tiles} tiles of {grid.tile_width} x {grid.tile_height} latent cells, "
        f"overlap {grid.overlap}, {plan.tile_batch} in a call.",
        soft_wrap=True,
    )
    # Where the processor computes, the device's memory is the host's.
    places = [p for p in PLACES if any(getattr(peak, p) for peak in plan.peaks)]
    table = Table("stage")
    for place in (*places, "TFLOP"):
        name = "scratch disk" if place == "disk" else f"{place} memory"
        table.add_column(name if place in places else place, justify="right")
    work = {"encode": flops["encode"], "denoise": flops["step"] * steps, "decode": flops["decode"]}
    for stage, peak in plan.peaks._asdict().items():
        sizes = [in_words(getattr(peak, p)) if getattr(peak, p) else "" for p in places]
        name = f"denoise, {steps} steps" if stage == "denoise" else stage
        table.add_row(name, *sizes, f"{work[stage] / 1e12:,.2f}" if stage in work else "")
    table.add_row("in total", *[""] * len(places), f"{flops['total'] / 1e12:,.2f}", style="bold")
    console.print(table)
    console.print(
        f"Peaks include the weights. Feature maps wait {PLACES[plan.pieces.keep]}, "
        f"{plan.pieces.rows} rows are worked on at once, and networks that do not work "
        f"{'wait on the host' if plan.offload else 'stay where they are'}.",
        soft_wrap=True,
    )

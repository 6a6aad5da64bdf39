"""`stablesr plan`: what an image would take, before anyone pays for it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cli.errors import JobFailed
from cli.extras import require_torch
from cli.settings import BadSettings
from jobs.settings import Settings

if TYPE_CHECKING:  # torch takes seconds; what is checked before needs none of it
    from models.forecast import Forecast

__all__ = ["Question", "run"]

PLACES = {
    "device": "on the device",
    "host": "in the host's memory",
    "disk": "on disk",
}


@dataclass(frozen=True)
class Question:
    """An image and how it is to be upscaled; None: the defaults."""

    size: str
    """WIDTHxHEIGHT of the input"""
    scale: float | None
    steps: int | None
    fidelity_weight: float | None
    overlap: int | None


def run(question: Question, settings: Settings, *, as_json: bool) -> None:
    """Prints the plan that the settings' preset and device would follow.

    Raises:
        BadSettings: the size is none, or a value is not possible.
        JobFailed: no plan fits.
    """
    width, height = _sides(question.size)
    require_torch()
    found = _forecast(question, settings, width, height)
    if as_json:
        print(json.dumps(_facts(found, width, height), indent=2))
    else:
        _show(found, width, height)


def _sides(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,8})[xX]([1-9]\d{0,8})", text)
    if found is None:
        raise BadSettings(f"The size is {text!r}, but must be WIDTHxHEIGHT, such as 640x480.")
    return int(found[1]), int(found[2])


def _forecast(question: Question, settings: Settings, width: int, height: int) -> Forecast:
    from models.errors import InvalidOption, ModelError
    from models.forecast import forecast
    from models.options import Options
    from models.presets import get_preset
    from worker.device import choose_device, choose_dtype, named_device, resources_of
    from worker.errors import NotStarted

    preset = get_preset(settings.preset)
    weight, scale = question.fidelity_weight, question.scale
    try:
        absent = settings.memory_limit is not None
        device = (named_device if absent else choose_device)(settings.device)
        options = Options(
            fidelity_weight=preset.fidelity_weight if weight is None else weight,
            scale=Options.scale if scale is None else scale,
            steps=question.steps,
            tile_overlap=question.overlap,
        )
        return forecast(
            preset,
            height,
            width,
            options,
            dtype=choose_dtype(settings.dtype, device),
            device=device,
            resources=resources_of(settings, jobs=1),
        )
    except (NotStarted, InvalidOption) as error:
        raise BadSettings(str(error)) from error
    except ModelError as error:
        raise JobFailed(str(error)) from error


def _facts(found: Forecast, width: int, height: int) -> dict[str, Any]:
    plan, layout, flops = found.plan, found.plan.layout, found.flops
    return {
        "input": [width, height],
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
        "memory_bytes": found.memory._asdict(),
        "peak_bytes": {stage: m._asdict() for stage, m in plan.peaks._asdict().items()},
        "flops": {
            "encode": flops.encode,
            "step": flops.step,
            "steps": flops.steps,
            "decode": flops.decode,
            "total": flops.total,
        },
    }


def _show(found: Forecast, width: int, height: int) -> None:
    from models.memory import in_words

    plan, layout, flops = found.plan, found.plan.layout, found.flops
    # What was asked for, and so on the standard output, unlike what other commands say.
    console = Console(highlight=False)
    out_height, out_width = layout.size
    rows, columns = layout.canvas
    grid = layout.grid
    console.print(
        f"{width} x {height} -> {out_width} x {out_height} pixels"
        + (f", computed at {columns} x {rows}" if layout.canvas != layout.size else "")
        + f": {plan.tiles} tiles of {grid.tile_width} x {grid.tile_height} latent cells, "
        f"overlap {grid.overlap}, {plan.tile_batch} in a call.",
        soft_wrap=True,
    )
    # Where the processor computes, the device's memory is the host's.
    places = [p for p in ("device", "host", "disk") if any(getattr(m, p) for m in plan.peaks)]
    table = Table("stage")
    for place in places:
        table.add_column("scratch disk" if place == "disk" else f"{place} memory", justify="right")
    table.add_column("TFLOP", justify="right")
    work = {"encode": flops.encode, "denoise": flops.step * flops.steps, "decode": flops.decode}
    for stage, memory in plan.peaks._asdict().items():
        sizes = [in_words(getattr(memory, p)) if getattr(memory, p) else "" for p in places]
        teraflops = f"{work[stage] / 1e12:,.2f}" if stage in work else ""
        name = f"denoise, {flops.steps} steps" if stage == "denoise" else stage
        table.add_row(name, *sizes, teraflops)
    table.add_row("in all", *[""] * len(places), f"{flops.total / 1e12:,.2f}", style="bold")
    console.print(table)
    console.print(
        f"Peaks include the weights. Feature maps wait {PLACES[plan.pieces.keep]}, "
        f"{plan.pieces.rows} rows are worked on at once, and networks that do not work "
        f"{'wait on the host' if plan.offload else 'stay where they are'}.",
        soft_wrap=True,
    )

"""`stablesr plan`: what an image would take, before anyone pays for it."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.errors import BadSettings, JobFailure, load, require_torch, translate, valid_parameters
from cli.options import AsJson, DecodeTile, FidelityWeight, Preset, Scale, Steps, TileBatch, option
from jobs.settings import Settings
from models.parameters import MIN_OVERLAP, UpscaleParameters, preset_parameters
from models.presets import get_preset

PLACES = {"device": "on the device", "host": "in the host's memory", "disk": "on disk"}


def plan(
    size: Annotated[str, typer.Argument(metavar="WIDTHxHEIGHT", help="The input's, in pixels.")],
    scale: Scale = None,
    steps: Steps = None,
    preset: Preset = None,
    fidelity_weight: FidelityWeight = None,
    overlap: Annotated[
        int | None, option("Of tiles, in latent cells.", default="the preset's", min=MIN_OVERLAP)
    ] = None,
    device: Annotated[str | None, option("cpu or cuda; with --memory it need not be here.")] = None,
    dtype: Annotated[
        str | None, option("float32, bfloat16 or float16.", default="the device's")
    ] = None,
    memory: Annotated[
        str | None, option("What there is on the device, such as 8GB.", default="what is free")
    ] = None,
    tile_batch: TileBatch = None,
    decode_tile: DecodeTile = None,
    as_json: AsJson = False,
) -> None:
    """Say what an image would take, before it is computed: tiles, memory, arithmetic."""
    settings = load(
        preset=preset, device=device, dtype=dtype, memory_limit=memory, tile_batch=tile_batch
    )
    sides = re.fullmatch(r"([1-9]\d{0,8})[xX]([1-9]\d{0,8})", size)
    if sides is None:
        raise BadSettings(f"The size is {size!r}, but must be WIDTHxHEIGHT, such as 640x480.")
    require_torch()
    from models.errors import InvalidOption, ModelError
    from worker.device import StartupError

    errors = {StartupError: BadSettings, InvalidOption: BadSettings, ModelError: JobFailure}
    with translate(errors), valid_parameters():
        parameters = preset_parameters(
            get_preset(settings.preset),
            fidelity_weight=fidelity_weight,
            scale=scale,
            steps=steps,
            tile_overlap=overlap,
        )
        facts = _facts(settings, int(sides[2]), int(sides[1]), parameters, decode_tile)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(
    settings: Settings,
    height: int,
    width: int,
    parameters: UpscaleParameters,
    decode_tile: int | None,
) -> dict[str, Any]:
    """What is printed of an input of these sides (px)."""
    from models.memory import Memory, MemoryBudget, resident
    from models.plan import Planner
    from worker.device import budget_of, choose_device, choose_dtype, devices_of, named_device

    preset, limit = get_preset(settings.preset), settings.memory_limit
    # With a limit, that is what the device has, which then need not be in this machine.
    device = (choose_device if limit is None else named_device)(devices_of(settings)[0])
    here = device if limit is None else named_device("cpu")
    memory = MemoryBudget().free(here)
    if limit is not None and device.type == "cuda":
        memory = Memory(limit, memory.host, memory.disk)
    elif limit is not None:
        # Python and the libraries take as much of it as in this process.
        memory = Memory(0, limit - resident(), memory.disk)
    dtype = choose_dtype(settings.dtype, device)
    budget = budget_of(settings, jobs=1, decode_tile=decode_tile)
    planner = Planner.of_preset(preset, dtype, device, budget, memory)
    outcome = planner.fit((height, width), parameters, memory)
    layout, grid = outcome.layout, outcome.layout.grid
    return {
        "input": [width, height],
        "result": list(layout.size[::-1]),
        "canvas": list(layout.canvas[::-1]),
        "latent": [grid.width, grid.height],
        "tile": grid.tile,
        "overlap": grid.overlap,
        "tiles": layout.tiles,
        "note": layout.note,
        "tile_batch": outcome.tile_batch,
        "decode_tile": outcome.strips.height,
        "keep": outcome.strips.keep,
        "offload": outcome.offload,
        "memory_bytes": memory._asdict(),
        "peak_bytes": {stage: peak._asdict() for stage, peak in outcome.peaks.items()},
        "flops": planner.flops(outcome, parameters),
    }


def _print(facts: dict[str, Any]) -> None:
    from models.memory import in_words

    flops, peaks, steps = facts["flops"], facts["peak_bytes"], facts["flops"]["steps"]
    sizes = {name: "{} x {}".format(*facts[name]) for name in ("input", "result", "canvas")}
    tile = " x ".join(str(min(facts["tile"], side)) for side in facts["latent"])
    canvas = f", computed at {sizes['canvas']}" if sizes["canvas"] != sizes["result"] else ""
    # What was asked for, and so on the standard output, unlike what other commands say.
    console = Console(highlight=False)
    console.print(
        f"{sizes['input']} -> {sizes['result']} pixels{canvas}: {facts['tiles']} tiles of {tile} "
        f"latent cells, overlap {facts['overlap']}, {facts['tile_batch']} in a call.",
        soft_wrap=True,
    )
    if facts["note"]:
        console.print(facts["note"], soft_wrap=True)
    # Where the processor computes, the device's memory is the host's.
    places = [place for place in PLACES if any(peak[place] for peak in peaks.values())]
    table = Table("stage")
    for place in places:
        table.add_column("scratch disk" if place == "disk" else f"{place} memory", justify="right")
    table.add_column("TFLOP", justify="right")
    work = {"encode": flops["encode"], "denoise": flops["step"] * steps, "decode": flops["decode"]}
    for stage, peak in peaks.items():
        row = [in_words(peak[place]) if peak[place] else "" for place in places]
        name = f"denoise, {steps} steps" if stage == "denoise" else stage
        table.add_row(name, *row, f"{work[stage] / 1e12:,.2f}" if stage in work else "")
    table.add_row("in total", *[""] * len(places), f"{flops['total'] / 1e12:,.2f}", style="bold")
    console.print(table)
    console.print(
        f"Peaks include the weights. Feature maps wait {PLACES[facts['keep']]}, "
        f"{facts['decode_tile']} rows are worked on at once, and networks that do not work "
        f"{'wait on the host' if facts['offload'] else 'stay where they are'}.",
        soft_wrap=True,
    )

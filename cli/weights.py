"""`stablesr weights`: lists, pulls, converts and verifies the weights on this machine."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from annotated_types import Ge
from pydantic import ByteSize
from rich.table import Table

from cli.errors import BadSettings, InputError, Unreachable, load, require_torch, translate
from cli.options import argument, option, parser
from cli.processes import require_posix
from cli.view import WeightsView, print_table, print_text, readable
from jobs.settings import Settings
from models.checkpoints.files import WeightsProgress, note_absence, preset_folder, weights_root
from models.errors import (
    CheckpointError,
    DiskFull,
    DownloadFailed,
    LicenceNotAccepted,
    ModelError,
    UnknownPreset,
    WeightsNotFound,
)
from models.presets import PRESETS, Preset, get_preset

if TYPE_CHECKING:  # slow to import, and only `prepare` writes a log
    from structlog.stdlib import BoundLogger

app = typer.Typer(
    help="The weights on this machine, in STABLESR_WEIGHTS or ~/.local/share/stablesr/weights.",
    no_args_is_help=True,
)


Name = Annotated[str, argument("Such as stablesr-512.", "PRESET")]
DType = Literal["float16", "bfloat16", "float32"]
DTypeOption = Annotated[DType, typer.Option("--dtype", help="The type of the numbers.")]
_bytes = parser(Annotated[ByteSize, Ge(1)], "size such as 2GB or 500MB")
_SHARDS = "Write several files of at most this size, such as 2GB."
ShardSize = Annotated[
    int | None, option(_SHARDS, default="one file", parser=_bytes, metavar="SIZE")
]
Text = Annotated[bool, typer.Option(help="Keep the text tower (0.7 GB), which prompts need.")]


@app.command("list")
def list_weights() -> None:
    """Show every preset: whether its weights are here, where, and under what licence."""
    require_torch("This command", instead="")
    table = Table("preset", "here", "size", "type", "where", "licence")
    for preset in PRESETS.values():
        folder = preset_folder(preset)
        table.add_row(preset.name, *_state(folder), str(folder), preset.licence)
    # As wide as it needs, for a script too.
    print_table(table)


def _state(folder: Path) -> tuple[str, str, str]:
    """Whether there are weights, their size and their type."""
    from models.checkpoints.folder import describe, open_folder

    try:
        _, record = describe(folder)
        _, weights = open_folder(folder)
    except WeightsNotFound:
        return "no", "", ""
    except CheckpointError:
        return "damaged", "", ""
    size = readable(sum(path.stat().st_size for path in weights.files))
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values()}
    return "yes", size, record.dtype if record else ", ".join(sorted(dtypes))


@app.command()
def pull(
    name: Name,
    accept_licence: Annotated[
        bool, option("Do not ask about the licence.", "--accept-licence")
    ] = False,
    text: Text = False,
    dtype: DTypeOption = "float16",
    shard_size: ShardSize = None,
    keep: Annotated[bool, option("Keep the downloaded files in .downloads.", "--keep")] = False,
    again: Annotated[bool, typer.Option("--force", help="Replace weights that are here.")] = False,
) -> None:
    """Download the released files of a preset, check and convert them. Resumes."""
    require_posix("weights pull")
    with _model_errors():
        from models.checkpoints import pull as pulling
        from models.checkpoints.writing import Form

        preset, root = get_preset(name), weights_root()
        here = pulling.is_there(preset, root) and not again
        consent = here or accept_licence or _ask(preset)
        with WeightsView() as view:
            folder = pulling.pull(
                preset,
                root,
                accept_licence=consent,
                on_progress=view,
                form=Form(dtype, shard_size, text),
                keep=keep,
                again=again,
            )
    if here:
        print_text(f"The weights of {name} are here already: {folder}.")
    else:
        _report(folder)


def _ask(preset: Preset) -> bool:
    """Shows a licence and asks a person; false where there is none to ask."""
    assert preset.release is not None  # weights that come with the package are here
    release = preset.release
    size = readable(sum(file.size for file in release.files))
    print_text(
        f"{preset.name}: {size} from {release.repository}, under the {preset.licence}.\n"
        f"Read it first: {preset.licence_url}\n"
        "The files hold a Stable Diffusion model, too, whose own licence applies as well."
    )
    return sys.stdin.isatty() and typer.confirm("Do you accept the licence?", err=True)


@app.command()
def convert(
    name: Name,
    diffusion: Annotated[Path, argument("The diffusion file, such as stablesr_000117.ckpt.")],
    autoencoder: Annotated[Path, argument("The autoencoder file, such as vqgan_cfw_00011.ckpt.")],
    base: Annotated[
        Path | None,
        option(
            "Stable Diffusion 2.1, a diffusers folder or a file: for a diffusion file "
            "without it, such as webui_768v_139.safetensors."
        ),
    ] = None,
    out: Annotated[
        Path | None, option("The folder to write.", default="where the preset is looked for")
    ] = None,
    text: Text = False,
    dtype: DTypeOption = "float16",
    shard_size: ShardSize = None,
    again: Annotated[bool, typer.Option("--force", help="Replace a folder that is there.")] = False,
) -> None:
    """Convert files that you have: whole .ckpt or .safetensors files; nothing in them is run."""
    require_posix("weights convert")
    with _model_errors(), WeightsView() as view:
        from models.checkpoints import convert as converting
        from models.checkpoints.sources import Sources
        from models.checkpoints.writing import Form

        preset = get_preset(name)
        folder = out or preset_folder(preset)
        conversion = converting.convert(
            preset,
            Sources(diffusion, autoencoder, base),
            folder,
            Form(dtype, shard_size, text),
            replace_folder=again,
            on_progress=view,
        )
    for what, count in conversion.omissions.items():
        print_text(f"Left out: {count} tensors, {what}.")
    if foreign := conversion.foreign:
        print_text(f"Not run: {len(foreign)} names in the files ({', '.join(foreign[:5])}).")
    _report(folder)


@app.command()
def verify(
    what: Annotated[str, argument("A preset, or a folder of weights.", "PRESET|FOLDER")],
) -> None:
    """Read all of a folder of weights: every tensor there and finite, the files as written."""
    with _model_errors(), WeightsView() as view:
        from models.checkpoints.folder import verify

        folder = preset_folder(get_preset(what)) if what in PRESETS else Path(what)
        verification = verify(folder, view)
    types = ", ".join(f"{count} {name}" for name, count in sorted(verification.dtypes.items()))
    sums = "the files are as they were written"
    if not verification.record:
        sums = "no sums are recorded to compare the files with"
    print_text(f"{folder}: {readable(verification.bytes)}, tensors {types}, all finite; {sums}.")


@app.command()
def prepare() -> None:
    """Fetch the weights of STABLESR_PRESET before a worker starts; fails never, says why not."""
    require_torch("This command", instead="")
    put_in_place(load())


def put_in_place(settings: Settings) -> None:
    """Puts the weights of `settings.preset` into place.

    What keeps them away is a line in the log and a note for the worker, not a failure: the worker
    is not ready and repeats the reason to its clients, and the next start of the stack tries again.
    SIGTERM ends the process with 143 and leaves no weights half-written.
    """
    import structlog

    from jobs.logs import configure_logging
    from models.checkpoints.folder import open_folder
    from models.checkpoints.pull import pull

    configure_logging(settings)
    log = structlog.get_logger(__name__)
    signal.signal(signal.SIGTERM, _end)
    preset = get_preset(settings.preset)
    if preset.embedded:
        log.info("weights come with the package", preset=preset.name)
        return
    licence = preset.licence.partition(" (")[0]  # without what is said of it in brackets
    try:
        folder = pull(
            preset,
            weights_root(),
            # By its name: what is accepted for one preset may not be what another has.
            accept_licence=(settings.accept_licence or "").casefold() == licence.casefold(),
            on_progress=_Progress(log.bind(preset=preset.name)),
        )
        open_folder(folder)
        note_absence(preset, None)
    # An unforeseen error must not keep the worker from starting either.
    except Exception as error:
        reason = _reason(licence, error)
        log.warning(
            "weights are not there",
            preset=preset.name,
            reason=reason,
            detail=str(error),
            licence=preset.licence,
            licence_url=preset.licence_url,
            exc_info=None if isinstance(error, (ModelError, OSError)) else error,
        )
        try:
            note_absence(preset, reason)
        except OSError as failure:
            log.warning("no note for the worker", preset=preset.name, detail=str(failure))
    else:
        log.info("weights are there", preset=preset.name, folder=str(folder))


def _reason(licence: str, error: Exception) -> str:
    """A clause for clients, who need not know hosts and folders."""
    match error:
        case LicenceNotAccepted():
            accept = f'STABLESR_ACCEPT_LICENCE="{licence}" would accept it'
            return f"its licence is not accepted ({accept})"
        case DownloadFailed():
            return "its weights could not be downloaded"
        case DiskFull():
            return "its weights do not fit on the disk"
        case CheckpointError():
            return "its weights cannot be used"
    return "its weights could not be put in place"


class _Progress:
    """Logs the start and the end of each part of the work, and every 30 seconds in between."""

    def __init__(self, log: BoundLogger) -> None:
        self._log = log
        self._part = ("", "")
        self._next = 0.0

    def __call__(self, now: WeightsProgress) -> None:
        part = (now.stage, now.name)
        if part == self._part and now.position < now.total and time.monotonic() < self._next:
            return
        self._part, self._next = part, time.monotonic() + 30
        self._log.info(
            "preparing weights",
            stage=now.stage,
            name=now.name,
            percent=round(100 * now.position / now.total) if now.total else None,
            gigabytes=round(now.total / 1e9, 2),
        )


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _report(folder: Path) -> None:
    """One line for what there is now, and what a person should know of it."""
    from models.checkpoints.folder import describe

    _, record = describe(folder)
    assert record is not None  # a conversion has just written it
    lines = [f"{folder}: {readable(sum(file.bytes for file in record.files))} in {record.dtype}."]
    if record.float32:
        lines.append(
            f"{len(record.float32)} tensors have values that {record.dtype} cannot hold and are "
            f"kept in float32: {', '.join(record.float32[:3])}."
        )
    if not record.shared_encoder:
        lines.append(
            "The VAE encoders of the two files differ: both are kept, and images take longer."
        )
    release = get_preset(record.preset).release
    assert release is not None  # it was converted
    sources = {source.name for source in record.sources}
    lines += [
        f"{file.name} was checked by its structure only: its sha256 is not published."
        for file in release.files
        if file.sha256 is None and file.name in sources
    ]
    print_text("\n".join(lines))


@contextmanager
def _model_errors() -> Iterator[None]:
    """Turns the errors of the model side into the command's."""
    require_torch("This command", instead="")
    kinds = {UnknownPreset: BadSettings, DownloadFailed: Unreachable, ModelError: InputError}
    with translate(kinds):
        try:
            yield
        except LicenceNotAccepted as error:
            raise BadSettings(f"{error} Say so with --accept-licence.") from error
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror or error}.") from error

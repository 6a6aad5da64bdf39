"""Golden networks as Lightning files, converted: what is loaded then gives the golden figures."""

from __future__ import annotations

from pathlib import Path

import torch

from models.checkpoints.convert import convert
from models.checkpoints.folder import load_folder
from models.checkpoints.sources import Sources
from models.checkpoints.writing import Form
from models.presets import get_preset
from tests.models.released import Tensors, write_files
from tests.parity import CASES, Golden, compare, draw_weight

FOLDER = Path(__file__).parents[1] / "golden"


def drawn(golden: Golden, file: str) -> Tensors:
    """The tensors of a released file by the rule of the golden figures; tables are left zero."""
    return {
        name: draw_weight(golden.salt, name, shape) if "." in name else torch.zeros(shape)
        for name, shape in golden.inventory[file].items()
    }


@torch.inference_mode()
def test_converted_golden_files_give_the_golden_outputs(tmp_path: Path) -> None:
    golden = Golden(FOLDER)
    files = write_files(tmp_path, drawn(golden, "state_dict"), drawn(golden, "cfw_state_dict"))
    done = convert(
        get_preset("stablesr-512"),
        Sources(*files),
        tmp_path / "out",
        Form(torch.float32, shard_bytes=20_000_000, text=True),
    )
    # Every tensor is drawn by its name, so the two encoders differ and both must be kept.
    assert not done.record.shared_encoder
    networks = load_folder(tmp_path / "out", torch.device("cpu"), torch.float32)
    golden.__dict__["networks"] = networks

    compared = [
        compare(name, ours, golden.arrays[name])
        for case in CASES
        if case.__name__ in ("_networks", "_autoencoders", "_text")
        for name, ours in case(golden)
    ]
    assert len(compared) == 18
    assert [c for c in compared if not c.ok] == []

    # The first text is the empty one.
    assert golden.arrays["text_tokens"][0].tolist() == [49406, 49407] + 75 * [0]
    empty = compare("context", networks.context, golden.arrays["text_out"][:1])
    assert empty.ok, empty

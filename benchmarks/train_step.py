"""Training steps of encoder and modulation with random weights, at full size or tiny's.

    python -m benchmarks.train_step --cells 64
    python -m benchmarks.train_step --sizes tiny --cells 24 --batch 16 --steps 5 --precision bf16

Prints the seconds of the step, the peak memory of the process, how many parameters learned, and
checks that no other tensor of the UNet changed. The autoencoder is not held: latents are random.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.machine import describe, peak_memory, synchronize
from models.checkpoints.folder import random_networks
from models.config import AutoencoderConfig
from training.activations import recompute_activations
from training.denoising import Guidance
from training.sizes import SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", choices=tuple(SIZES), default="full")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="autocast")
    parser.add_argument("--cells", type=int, default=64, help="side of the latent")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep-activations", action="store_true", help="do not recompute them")
    parser.add_argument("--steps", type=int, default=1)
    a = parser.parse_args()
    device = torch.device(a.device)
    # A narrow autoencoder: the step has no use for one.
    narrow = AutoencoderConfig(widths=(32, 32, 32, 32), layers=1)
    config = replace(SIZES[a.sizes], autoencoder=narrow)
    networks = random_networks(config, device, torch.float32)
    for name, parameter in networks.named_parameters():
        parameter.requires_grad_(Guidance.trainable(name))
    learned: list[nn.Parameter] = [p for p in networks.parameters() if p.requires_grad]
    if not a.keep_activations:
        recompute_activations(networks)

    def latents(number: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (2, a.batch, config.unet.in_channels, a.cells, a.cells)
        high, low = torch.randn(shape, generator=generator).to(device)
        return {"high": high, "low": low}

    objective = Guidance(networks, latents, seed=0)
    optimizer = torch.optim.AdamW(learned, lr=5e-5)
    before = _sums(networks)
    taken, taken_cpu = [], []
    for step in range(a.steps):
        synchronize(device)
        began, began_cpu = time.perf_counter(), time.process_time()
        batch = objective.draw(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=a.precision == "bf16"):
            made = objective(batch)
        loss = objective.terms(made, batch, step)["denoising"]
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no types here
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        taken.append(time.perf_counter() - began)
        taken_cpu.append(time.process_time() - began_cpu)
    after = _sums(networks)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wrong = [name for name in changed if not Guidance.trainable(name)]
    if wrong:
        raise SystemExit(f"The prior changed: {', '.join(wrong[:5])}")
    print(
        json.dumps(
            {
                "machine": describe(device),
                "precision": a.precision,
                "latent": [a.batch, a.cells, a.cells],
                "activations": "kept" if a.keep_activations else "recomputed",
                "loss": float(loss.detach()),
                "seconds": [round(s, 2) for s in taken],
                "cpu_seconds": [round(s, 2) for s in taken_cpu],
                "peak_memory_gb": round(peak_memory(device) / 1e9, 2),
                "parameters": sum(p.numel() for p in networks.parameters()),
                "learned_parameters": sum(p.numel() for p in learned),
                "tensors_changed": len(changed),
            },
            indent=2,
        )
    )


def _sums(networks: nn.Module) -> dict[str, Tensor]:
    """A checksum of each tensor's bits: copies of all would double the memory."""
    return {
        n: p.detach().view(torch.int32).sum(dtype=torch.int64)
        for n, p in networks.named_parameters()
    }


if __name__ == "__main__":
    main()

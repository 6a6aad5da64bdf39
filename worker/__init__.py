"""The consumer that owns one device: RQ worker loops, the engine that batches, the image files.

    supervisor.main(settings) ──┬── slots (a worker loop and a thread each) ── tasks.upscale
                                ├── engine (the thread that calls the network)
                                ├── heartbeat (signs of life, recovery of lost jobs)
                                ├── maintenance (results that expire)
                                └── watchdog (ends the process when a step stalls)

Nothing in this package knows about HTTP.
"""

from __future__ import annotations

import os

# Slots and engine compute on the same cores. OpenMP's threads, left alone, spin while they wait for
# work and take those cores from each other: on two shared ones a step took a hundred times as long.
# OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# `cuda:1` is what nvidia-smi calls 1; CUDA's own order is by speed. Read when CUDA is first used.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

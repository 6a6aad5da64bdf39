"""What is timed: each command prints a table, and writes it as JSON with `--json FILE`.

    python -m benchmarks.step      one network call
    python -m benchmarks.image     one image, stage by stage
    python -m benchmarks.service   jobs through HTTP, queue and worker
    python -m benchmarks.io        image files, and the conversion of weights
    python -m benchmarks.quality   scores
    python -m benchmarks.memory    peak memory against the size of an image

`python -m benchmarks FILES` makes from the JSON the tables of docs/performance.md, and
`python -m benchmarks --gpu` measures what one GPU does, in a few minutes.
"""

from __future__ import annotations

import os

# As in `worker`: spinning threads would measure the other processes on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

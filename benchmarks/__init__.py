"""What is timed: each module is one command that prints a table, and JSON with `--json`."""

from __future__ import annotations

import os

# As in `worker`: spinning threads would measure the other processes on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

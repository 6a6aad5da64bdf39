#!/usr/bin/env bash
# Guess: torch.save writes to any path that open() takes, so `.name` beside the target is a good place
# to write to before a rename.
# What happens: a file name that begins with its only dot is refused. The name inside the archive is
# the file's without suffix, and of `.weights` nothing is left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch

print("torch", torch.__version__)
for name in ("weights", "weights.part", ".weights.part", ".weights"):
    try:
        torch.save(torch.zeros(1), name)
        print(f"{name!r}: written")
    except RuntimeError as error:
        print(f"{name!r}: {str(error).splitlines()[0]}")
        assert name == ".weights"
        assert "invalid file name" in str(error)
    else:
        assert name != ".weights", "it is accepted now"
PYTHON

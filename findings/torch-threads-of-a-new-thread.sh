#!/usr/bin/env bash
# Guess: `torch.set_num_threads(1)` called first thing in a new thread holds in that thread.
# What happens: when a thread first asks for its number or computes, it takes over what was set last in
# any thread. So what it set before is lost as soon as another thread sets its own; when it has asked
# first, its number stays. A thread that begins while another one's 1 is the last that was set has 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0
cd "$folder"
venv/bin/python - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import torch

print("torch", torch.__version__)
torch.get_num_threads()
torch.set_num_threads(4)


def of_a_new_thread(ask_first: bool) -> int:
    with ThreadPoolExecutor(1) as thread:
        if ask_first:
            thread.submit(torch.get_num_threads).result()
        thread.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(4)
        return thread.submit(torch.get_num_threads).result()


def began_meanwhile() -> int:
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(torch.get_num_threads).result()
        first.submit(torch.set_num_threads, 1).result()
        assert torch.get_num_threads() == 4
        return second.submit(torch.get_num_threads).result()


set_at_once, asked_first, meanwhile = of_a_new_thread(False), of_a_new_thread(True), began_meanwhile()
print("1 was set at once, then 4 elsewhere:", set_at_once)
print("the same, but the thread had asked first:", asked_first)
print("a thread that began while 1 was the last that any had set:", meanwhile)
assert (set_at_once, asked_first, meanwhile) == (4, 1, 1)
PYTHON

#!/usr/bin/env bash
# Guess: a scheduler that is asked for one step makes it from pure noise, at timestep 999, and two
# steps do more than one.
# What happens: of diffusers' DDPMScheduler with "leading" or "linspace" spacing, the only step of one
# is at timestep 0, where nothing is denoised: it gives the noise back. Only "trailing" begins at 999.
# The last step of "linspace" is at 0 for any number, so two steps are one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  numpy==2.4.6 torch==2.13.0 diffusers==0.42.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import diffusers
import torch

print("diffusers", diffusers.__version__)
found = {}
for spacing in ("leading", "linspace", "trailing"):
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing=spacing,
    )
    for steps in (1, 2):
        scheduler.set_timesteps(steps)
        found[spacing, steps] = scheduler.timesteps.tolist()
        print(spacing, steps, found[spacing, steps])
    scheduler.set_timesteps(1)
    noise = torch.randn(1, 4, 8, 8)
    [timestep] = scheduler.timesteps
    # With v = 0 the step says how much of its input it takes for the clean latent.
    out = scheduler.step(torch.zeros_like(noise), timestep, noise).prev_sample
    print(f"  one step, what is left of the noise: {float(out.norm() / noise.norm()):.3f}")
    found[spacing] = float(out.norm() / noise.norm())
assert found["leading", 1] == [0]
assert found["linspace", 1] == [0]
assert found["trailing", 1] == [999]
assert found["linspace", 2] == [999, 0]
assert found["leading"] > 0.9 and found["linspace"] > 0.9 and found["trailing"] < 0.1
PYTHON

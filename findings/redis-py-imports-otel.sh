#!/usr/bin/env bash
# Guess: redis-py touches OpenTelemetry only when its metrics are switched on.
# What happens: `import redis` imports the metrics part of OpenTelemetry's SDK wherever that is
# installed, for another library's sake, say. So a program that traces nothing pays for it at start.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 opentelemetry-sdk==1.45.2
cd "$folder"
cat > look.py <<'PYTHON'
import sys
from importlib.metadata import version

import redis

names = [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
print("redis", version("redis"), "modules of the SDK:", len(names))
print("metrics:", "opentelemetry.sdk.metrics" in names, "tracing:", "opentelemetry.sdk.trace" in names)
assert "opentelemetry.sdk.metrics" in names
PYTHON
venv/bin/python look.py
echo "without the SDK:"
venv/bin/pip uninstall --quiet --yes opentelemetry-sdk
venv/bin/python -c "import redis, sys; assert not any(n.startswith('opentelemetry.sdk') for n in sys.modules); print('none')"

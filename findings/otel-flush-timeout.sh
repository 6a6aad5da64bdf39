#!/usr/bin/env bash
# Guess: provider.force_flush(timeout_millis=500) returns within half a second, False if the spans
# could not be sent; and shutdown() without a collector is quick, or bounded by OTEL_BSP_EXPORT_TIMEOUT.
# What happens: BatchSpanProcessor ignores both numbers. A flush lasts as long as the exporter tries
# (OTEL_EXPORTER_OTLP_TIMEOUT, 10 s, of each batch of 512) and then says True although all is lost;
# shutdown(), which also runs at exit, waits as long, up to 30 s. SIGKILL comes first in a container.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
cd "$folder"
venv/bin/python - <<'PYTHON'
import logging
import os
import socket
import time
from importlib.metadata import version

# Set before anything is made, and ignored.
os.environ["OTEL_BSP_EXPORT_TIMEOUT"] = "500"
os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "4"

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

logging.disable()
print("opentelemetry-sdk", version("opentelemetry-sdk"))
with socket.create_server(("127.0.0.1", 0)) as silent:
    # It takes connections, and no one answers.
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))
    tracer = provider.get_tracer("finding")

    tracer.start_span("first").end()
    start = time.monotonic()
    answer = provider.force_flush(timeout_millis=500)
    flush_s = time.monotonic() - start
    print(f"force_flush(timeout_millis=500): {answer} after {flush_s:.1f} s")

    tracer.start_span("second").end()
    start = time.monotonic()
    provider.shutdown()
    shutdown_s = time.monotonic() - start
    print(f"shutdown(): after {shutdown_s:.1f} s")
assert answer is True, "it has changed"
assert flush_s > 3, "it has changed"
assert shutdown_s > 3, "it has changed"
PYTHON

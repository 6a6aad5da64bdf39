# The worker: torch and the model. torch's CUDA wheel carries its own runtime, so the base is
# the same slim Python; the host adds the driver (NVIDIA container toolkit).
#   docker build -f docker/worker.Dockerfile -t stablesr-worker .
# TORCH_INDEX names a package index with another build of torch, such as one for CPUs only.

# Of all the pins only torch's, so that the layer below stays when another one changes.
FROM python:3.11-slim-bookworm AS pins
COPY constraints.txt ./
RUN grep '^torch==' constraints.txt > /torch.txt

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
RUN python -m venv /opt/stablesr
ENV PATH=/opt/stablesr/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# torch first, alone: it is by far the largest layer and changes the least.
COPY --from=pins /torch.txt /tmp/
RUN pip install --quiet ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement /tmp/torch.txt
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["worker"], *p["optional-dependencies"]["otel"], sep="\n")' \
  | grep -v '^stablesr-' > /tmp/worker.txt \
 && pip install --quiet --constraint constraints.txt --requirement /tmp/worker.txt
COPY README.md LICENSE ./
COPY cli cli
COPY client client
COPY jobs jobs
COPY models models
COPY worker worker
RUN pip install --quiet --no-deps ./client .

FROM python:3.11-slim-bookworm
# torch.compile builds its launchers with it, at run time; without it calls are computed eagerly.
ARG COMPILER="gcc libc6-dev"
RUN test -z "$COMPILER" \
 || (apt-get update -qq && apt-get install -y -qq --no-install-recommends $COMPILER \
     && rm -rf /var/lib/apt/lists/*)
# One number for every image of the project: service and worker write to the same volume.
# A new volume takes its owner from the folder that it is mounted over.
RUN groupadd --gid 10001 stablesr \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/stablesr --no-create-home --shell /usr/sbin/nologin stablesr \
 && install -d -o stablesr -g stablesr /var/lib/stablesr /var/lib/stablesr/blobs /var/lib/stablesr/compiled /var/lib/stablesr/scratch /var/lib/stablesr/weights
COPY --from=build /opt/stablesr /opt/stablesr
ENV PATH=/opt/stablesr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STABLESR_BLOB_ROOT=/var/lib/stablesr/blobs \
    STABLESR_WEIGHTS=/var/lib/stablesr/weights \
    TMPDIR=/var/lib/stablesr/scratch \
    XDG_STATE_HOME=/var/lib
WORKDIR /var/lib/stablesr
VOLUME ["/var/lib/stablesr/blobs", "/var/lib/stablesr/compiled", "/var/lib/stablesr/scratch", "/var/lib/stablesr/weights"]
USER 10001:10001
# SIGTERM puts the running jobs back on the queue at their next step.
STOPSIGNAL SIGTERM
ENTRYPOINT ["stablesr"]
CMD ["worker"]

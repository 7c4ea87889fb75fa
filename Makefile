# Everything here sets up all that it needs by itself: Python 3.11 or newer, make and git are enough.
# `make` alone says what there is.

SECONDS ?=
ROUNDS ?=
NAME ?=
BASE ?=
ARGS ?=
WORKERS ?= 4
CONTAINERS ?=

BIN = .venv/bin

# Tests and demo start hundreds of processes of this tree: none need compile what another has.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup broker demo test lint format bench chaos fuzz images wheels sbom adapter schemas lock clean

help:
	@echo 'make demo               the whole gateway on simulated sensors, live   [SECONDS=20]'
	@echo 'make test               the tests, against a real Mosquitto            [ARGS="-k dc09"]'
	@echo 'make test CONTAINERS=1  and those that run the images, with an engine'
	@echo 'make lint               ruff, mypy, import rules'
	@echo 'make format             let ruff rewrite what it can'
	@echo 'make bench              measure it on this machine                     [ARGS=...]'
	@echo 'make chaos              kill everything at random, count what arrives  [ROUNDS=20]'
	@echo 'make fuzz               hostile bytes for every parser                 [SECONDS=60]'
	@echo 'make adapter NAME=foo   a new room with tests to fill in'
	@echo 'make schemas            write the generated documents anew'
	@echo 'make images             a container image for each service             [BASE=IMAGE]'
	@echo 'make wheels             fetch what they need, to build them offline'
	@echo 'make sbom               what is in each image, as CycloneDX'
	@echo 'make lock               pin the dependencies anew                      [ARGS=--upgrade]'

setup:
	@scripts/setup

# The tests want a real Mosquitto; the script says what to do where it cannot get one.
broker: setup
	@scripts/get-mosquitto >/dev/null

demo: setup
	@$(BIN)/tocsin demo $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

test: broker
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(if $(CONTAINERS),,--ignore tests/containers) $(ARGS)

lint: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: broker
	@$(BIN)/python -m tests.bench $(ARGS)

chaos: broker
	@$(BIN)/python -m tests.chaos $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

fuzz: setup
	@$(BIN)/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

images: setup
	@$(BIN)/python -m scripts.images $(if $(BASE),--base $(BASE)) $(ARGS)

wheels: setup
	@$(BIN)/python -m scripts.wheels $(ARGS)

sbom: setup
	@$(BIN)/python -m scripts.sbom $(ARGS)

adapter: setup
	@$(BIN)/python -m scripts.new_adapter $(NAME)
	@$(BIN)/python -m services.schemas

schemas: setup
	@$(BIN)/python -m services.schemas
	@$(BIN)/python -m scripts.dashboard

lock:
	@scripts/lock $(ARGS)

clean:
	@scripts/engine stop
	rm -rf .venv .cache build dist

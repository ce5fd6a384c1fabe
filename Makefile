# Everything happens in .venv. TORCH is the torch to install, for example: make test TORCH=torch==2.13.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = .venv/bin
SOURCES = setup.py pyproject.toml $(wildcard csrc/*.h csrc/*/*)

.PHONY: help build test info clean

help:
	@echo "make build  - create .venv and install the package into it"
	@echo "make test   - build, then run the tests"
	@echo "make info   - build, then print which backends this machine can run"
	@echo "make clean  - remove what the build made"

.venv/installed: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

build: .venv/installed

test: .venv/installed
	$(BIN)/python -m pytest -n 2

info: .venv/installed
	$(BIN)/python -m xlstm_fused info

clean:
	rm -rf build .venv xlstm_fused/*.so xlstm_fused/_build.json

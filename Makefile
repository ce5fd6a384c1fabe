# Everything happens in .venv. TORCH is the torch to install, for example: make test TORCH=torch==2.13.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = .venv/bin
# Every install names TORCH, so that none can replace it; the stamp does, so that another TORCH installs again.
PIP_INSTALL = $(BIN)/python -m pip install --quiet "$(TORCH)"
INSTALLED := .venv/installed-$(firstword $(shell printf %s "$(TORCH)" | cksum))
# What tests compare with, installed without what only their GPU kernels and trained models need.
ORACLES = xlstm==2.0.6 flashrnn==1.0.8 tirex-ts==1.4.2
SOURCES = Makefile setup.py pyproject.toml $(wildcard csrc/*.h csrc/*/*)

.PHONY: help build demo test kernels info clean

help:
	@echo "make build  - create .venv and install the package into it"
	@echo "make demo   - build, then train a forecaster, with nn.LSTM beside it"
	@echo "make test   - build, then run the tests"
	@echo "make kernels - build, compile the Triton kernels for GPUs, and print what these and the CUDA ones need of them"
	@echo "make info   - build, then print which backends this machine can run"
	@echo "make clean  - remove what the build made"

$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv .venv
	rm -f .venv/installed*
	$(PIP_INSTALL) -e ".[test]"
	$(PIP_INSTALL) --no-deps $(ORACLES)
	touch $@

build: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python -m xlstm_fused demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

kernels: $(INSTALLED)
	$(BIN)/python tests/gpu_without_gpu/kernels.py
	$(BIN)/python tests/gpu_without_gpu/cuda_kernels.py

info: $(INSTALLED)
	$(BIN)/python -m xlstm_fused info

clean:
	rm -rf build .venv xlstm_fused/*.so xlstm_fused/_build.json

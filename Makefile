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

.PHONY: help build demo test fuzz soak large kernels info clean

help:
	@echo "make build  - create .venv and install the package into it"
	@echo "make demo   - build, then train a forecaster, with nn.LSTM beside it"
	@echo "make test   - build, then run the tests"
	@echo "make fuzz   - build, then make DRAWS (50000) random calls and compare each with the reference"
	@echo "make soak   - build, then make 20000 calls of random shapes and watch memory and threads"
	@echo "make large  - build, then run the tests that need 12 GiB of memory"
	@echo "make kernels - build, then compile the Triton kernels for GPUs and print what they need of them"
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

DRAWS ?= 50000
fuzz: $(INSTALLED)
	XLSTM_FUSED_DRAWS=$(DRAWS) $(BIN)/python -m pytest -n 2 tests/test_fuzz.py

soak: $(INSTALLED)
	$(BIN)/python tests/soak.py

large: $(INSTALLED)
	XLSTM_FUSED_LARGE=1 $(BIN)/python -m pytest tests/test_large.py

kernels: $(INSTALLED)
	$(BIN)/python tests/gpu_without_gpu/kernels.py

info: $(INSTALLED)
	$(BIN)/python -m xlstm_fused info

clean:
	rm -rf build .venv xlstm_fused/*.so xlstm_fused/_build.json

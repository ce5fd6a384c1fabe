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

# The other Triton that is tested, with the last numpy that its interpreter runs on: Python finds them before .venv's.
TRITON_3_6 = .venv/triton-3.6
SANITIZER = compute-sanitizer --error-exitcode 1
# Small problems of every kind; the sanitizer makes kernels a hundred times slower.
SANITIZED = -m gpu -q -p no:cacheprovider tests/test_triton.py \
	-k "every_reset_in_both_directions or step_by_step or meeting_at_a_barrier or 16_bit"

.PHONY: help build demo test test-triton-3.6 sanitize-gpu kernels info clean

help:
	@echo "make build  - create .venv and install the package into it"
	@echo "make demo   - build, then train a forecaster, with nn.LSTM beside it"
	@echo "make test   - build, then run the tests"
	@echo "make test-triton-3.6 - build, then run the Triton tests with Triton 3.6"
	@echo "make sanitize-gpu - build, then run Triton kernels on a GPU under compute-sanitizer"
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

.venv/installed-triton-3.6: $(INSTALLED)
	rm -rf $(TRITON_3_6)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRITON_3_6) triton==3.6.0 "numpy==2.3.*"
	touch $@

test-triton-3.6: .venv/installed-triton-3.6
	PYTHONPATH=$(CURDIR)/$(TRITON_3_6) $(BIN)/python -m pytest -n 2 tests/test_triton*.py

# Without torch's cache of memory, whose blocks lie side by side, a kernel that leaves a tensor shows.
sanitize-gpu: $(INSTALLED)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool memcheck $(BIN)/python -m pytest $(SANITIZED)
	$(SANITIZER) --tool racecheck $(BIN)/python -m pytest $(SANITIZED)

kernels: $(INSTALLED)
	$(BIN)/python tests/gpu_without_gpu/kernels.py

info: $(INSTALLED)
	$(BIN)/python -m xlstm_fused info

clean:
	rm -rf build .venv xlstm_fused/*.so xlstm_fused/_build.json

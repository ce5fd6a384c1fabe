# Everything happens in .venv. TORCH is the torch to install, for example: make test TORCH=torch==2.13.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN = .venv/bin
# Every install names TORCH, so that none can replace it; the stamp does, so that another TORCH installs again.
PIP_INSTALL = $(BIN)/python -m pip install --quiet "$(TORCH)"
INSTALLED := .venv/installed-$(firstword $(shell printf %s "$(TORCH)" | cksum))
# What tests compare with, installed without what only their GPU kernels and trained models need.
ORACLES = xlstm==2.0.6 flashrnn==1.0.8 tirex-ts==1.4.2
RUFF = 0.17.6
MYPY = 2.4.1
NOX = 2026.10.20
LINTERS = .venv/linters-$(RUFF)-$(MYPY)
LIBARCHER = /usr/lib/llvm-14/lib/libarcher.so
SOURCES = Makefile setup.py pyproject.toml $(wildcard csrc/*.h csrc/*/*)

# What a sanitizer needs in the process before Python: by default GCC's.
SANITIZED = build/sanitize
runtime = $(realpath $(shell $(CXX) -print-file-name=lib$(1).so))
# The other Triton that is tested, with the last numpy that its interpreter runs on: Python finds them before .venv's.
TRITON_3_6 = .venv/triton-3.6
SANITIZER = compute-sanitizer --error-exitcode 1
# Small problems of every kind; the sanitizer makes kernels a hundred times slower.
SANITIZED_GPU = -m gpu -q -p no:cacheprovider tests/test_triton.py tests/test_cuda.py \
	-k "every_reset_in_both_directions or step_by_step or meeting_at_a_barrier or 16_bit or values_and_gradients"

.PHONY: help build demo test test-triton-3.6 lint ruff mypy cppcheck warnings sanitize sanitize-address \
	sanitize-thread sanitize-gpu fuzz soak large matrix kernels info clean

help:
	@echo "make build  - create .venv and install the package into it"
	@echo "make demo   - build, then train a forecaster, with nn.LSTM beside it"
	@echo "make test   - build, then run the tests"
	@echo "make lint   - build, then run ruff, mypy, cppcheck and the compiler with warnings as errors"
	@echo "make sanitize - build csrc with sanitizers, then run the CPU backend's tests on that"
	@echo "make test-triton-3.6 - build, then run the Triton tests (TRITON_TESTS) with Triton 3.6"
	@echo "make sanitize-gpu - build, then run the kernels on a GPU under compute-sanitizer"
	@echo "make fuzz   - build, then make DRAWS (50000) random calls and compare each with the reference"
	@echo "make soak   - build, then make 20000 calls of random shapes and watch memory and threads"
	@echo "make large  - build, then run the tests that need 7 GiB of memory"
	@echo "make matrix - install wheel and sdist in fresh environments of several kinds and test them there"
	@echo "make kernels - build, compile the Triton kernels for GPUs, and print what these and the CUDA ones need of them"
	@echo "make info   - build, then print which backends this machine can run"
	@echo "make clean  - remove what the build made"

$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv .venv
	rm -f .venv/installed* .venv/linters*
	$(PIP_INSTALL) -e ".[test]"
	$(PIP_INSTALL) --no-deps $(ORACLES)
	touch $@

build: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python -m xlstm_fused demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# pre-commit runs the first three of these, too.
lint: ruff mypy cppcheck warnings

$(LINTERS): $(INSTALLED)
	$(PIP_INSTALL) ruff==$(RUFF) mypy==$(MYPY)
	touch $@

ruff: $(LINTERS)
	$(BIN)/ruff check

mypy: $(LINTERS)
	$(BIN)/mypy

cppcheck:
	@command -v cppcheck >/dev/null || echo "make lint: cppcheck is not installed, so csrc is seen by the compiler only"
	! command -v cppcheck >/dev/null || cppcheck --quiet --std=c++17 --language=c++ \
	    --enable=warning,performance,portability --error-exitcode=1 --suppress=missingIncludeSystem -Icsrc \
	    -DXLSTM_FUSED_ISA=portable csrc

# Warnings are errors here only: a user's newer compiler may have new ones.
warnings: $(INSTALLED)
	CXXFLAGS="-O0 -Wall -Wextra -Werror" $(BIN)/python setup.py -q build_ext --build-lib build/warnings
	! grep -q "did not compile" build/warnings/xlstm_fused/_build.json

sanitize: sanitize-address sanitize-thread

sanitize-address: $(INSTALLED)
	CXXFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
	    LDFLAGS=-fsanitize=address,undefined $(BIN)/python setup.py -q build --build-base build --build-lib $(SANITIZED)-address
	PYTHONPATH=$(SANITIZED)-address ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$(call runtime,asan) $(call runtime,ubsan) $(call runtime,stdc++)" \
	    $(BIN)/pytest -q -p no:cacheprovider tests/test_cpu*.py

# By clang and LLVM's OpenMP, whose archer tells ThreadSanitizer when OpenMP's threads wait for each other; libgomp has no
# such thing. Torch, which nothing here instruments, has one thread. The file names what OpenMP's own code is known for.
sanitize-thread: $(INSTALLED)
	CXX=clang++ CXXFLAGS="-O1 -g -fsanitize=thread" $(BIN)/python setup.py -q build --build-base build --build-lib $(SANITIZED)-thread
	PYTHONPATH=$(SANITIZED)-thread OMP_NUM_THREADS=1 OMP_TOOL_LIBRARIES=$(LIBARCHER) \
	    TSAN_OPTIONS="suppressions=tests/openmp.supp" LD_PRELOAD="$(call runtime,tsan)" \
	    $(BIN)/pytest -q -p no:cacheprovider tests/test_cpu*.py -k "split or threads or exact"

.venv/installed-triton-3.6: $(INSTALLED)
	rm -rf $(TRITON_3_6)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRITON_3_6) triton==3.6.0 "numpy==2.3.*"
	touch $@

TRITON_TESTS ?= tests/test_triton*.py
test-triton-3.6: .venv/installed-triton-3.6
	PYTHONPATH=$(CURDIR)/$(TRITON_3_6) $(BIN)/python -m pytest -n 2 $(TRITON_TESTS)

# Without torch's cache of memory, whose blocks lie side by side, a kernel that leaves a tensor shows.
sanitize-gpu: $(INSTALLED)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool memcheck $(BIN)/python -m pytest $(SANITIZED_GPU)
	$(SANITIZER) --tool racecheck $(BIN)/python -m pytest $(SANITIZED_GPU)
	$(SANITIZER) --tool synccheck $(BIN)/python -m pytest $(SANITIZED_GPU)

DRAWS ?= 50000
fuzz: $(INSTALLED)
	XLSTM_FUSED_DRAWS=$(DRAWS) $(BIN)/python -m pytest -n 2 tests/test_fuzz.py tests/test_binding.py

soak: $(INSTALLED)
	$(BIN)/python tests/soak.py

large: $(INSTALLED)
	XLSTM_FUSED_LARGE=1 $(BIN)/python -m pytest tests/test_large.py

# Of wheel and sdist, of torch and of Python, installed in fresh environments: noxfile.py says which.
matrix:
	$(PYTHON) -m venv .venv/nox
	.venv/nox/bin/python -m pip install --quiet nox==$(NOX)
	.venv/nox/bin/nox

kernels: $(INSTALLED)
	$(BIN)/python tests/gpu_without_gpu/kernels.py
	$(BIN)/python tests/gpu_without_gpu/cuda_kernels.py

info: $(INSTALLED)
	$(BIN)/python -m xlstm_fused info

clean:
	rm -rf build .venv xlstm_fused/*.so xlstm_fused/_build.json

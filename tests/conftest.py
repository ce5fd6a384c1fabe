import os

import pytest
import torch

# Without it cuBLAS refuses to multiply where poisoned_memory asks torch for deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: more threads would only wait for each other. Tests of threading set their own count.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20260101)


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN, so that an element that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

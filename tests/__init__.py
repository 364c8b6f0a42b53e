"""Tests mirror the package. This file runs before any of them imports PyTorch."""

import os

# Workers, and the processes that tests start, inherit it. If the threads of two workers wait for
# each other on two cores, training in tests takes three to eight times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""The tests' models are tiny: one thread each is faster than two that wait for each other, also on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the programs that tests start

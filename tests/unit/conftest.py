"""One thread for each test process: two of them with two spinning threads each, on two cores, stand still."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; processes that a test starts inherit it

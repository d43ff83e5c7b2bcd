"""Settings for all tests: one thread, for tiny models lose more by sharing work than they gain."""

import torch

torch.set_num_threads(1)

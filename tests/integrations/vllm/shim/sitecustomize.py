"""Lets torchvision be imported beside a torch of another build, when this folder is on PYTHONPATH.

vLLM imports torchvision, whose package in the registry is built for CUDA. Beside a torch for CPUs its operators are
missing, and its import fails at the first one that it describes. Declaring them is enough; nothing here calls them.
"""

import importlib.abc
import sys


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares the operators just before torchvision is looked for, which is once."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.declared_operators = self.library  # they exist as long as this object does


sys.meta_path.insert(0, DeclareOperators())

"""Declares what torchvision lacks on a torch without CUDA; to be imported before whatever imports torchvision.

PyPI's torchvision is built for CUDA and does not load its own operators beside another torch; its import then asks
for two that are not there. Nothing in the tests calls them.
"""

import torch

OPERATORS = torch.library.Library("torchvision", "DEF")
OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

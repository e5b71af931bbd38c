"""Tensors → tensors. `ops` says what there is; `select` picks an implementation of each, once, at load."""

from ossia.kernels.ops import CHOICES, Kernels, select, select_for_training

__all__ = ["CHOICES", "Kernels", "select", "select_for_training"]

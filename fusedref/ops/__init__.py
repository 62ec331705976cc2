"""The operator on torch tensors."""

from fusedref.ops import operators as operators  # registers torch.ops.fusedref, which traces name

"""The operator on torch tensors."""

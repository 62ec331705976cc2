"""Compile CUDA C to a shared library: the front end, the host compiler and the translation of its messages."""

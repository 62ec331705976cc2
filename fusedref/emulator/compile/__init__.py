"""From CUDA C to a shared library: the front end, the host compiler, and what its messages mean."""

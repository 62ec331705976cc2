"""The ladder: a .cu file per rung, and ladder.py, which launches them. `python -m kernels` validates every rung."""

"""The ladder: one .cu file a rung, and ladder.py, which says how each is launched. `python -m kernels` climbs it."""

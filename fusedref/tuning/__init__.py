"""Time the candidates for the convolutions of a model, and remember which are the fastest."""

from fusedref.tuning.layers import Layer, layers_of
from fusedref.tuning.timing import graph_samples
from fusedref.tuning.tune import Tuned, fastest, measured, tune

__all__ = ["Layer", "Tuned", "fastest", "graph_samples", "layers_of", "measured", "tune"]

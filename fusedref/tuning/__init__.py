"""Time the candidates for the convolutions of a model, and remember which are the fastest."""

from fusedref.tuning.choose import Tuned, fastest, measured, tune
from fusedref.tuning.layers import Layer, layers_of
from fusedref.tuning.timing import graph_samples

__all__ = ["Layer", "Tuned", "fastest", "graph_samples", "layers_of", "measured", "tune"]

"""Fused recurrent layers for PyTorch: LSTM, GRU and sLSTM, the whole time loop in one kernel."""

from importlib.metadata import version

from . import compat, convert
from .backends import backends
from .cell_module import FusedxLSTMCell
from .functional import recurrence
from .module import FusedxLSTM
from .resets import resets_from_done
from .trace import LayerTrace, Trace

__version__ = version("xlstm-fused")
__all__ = ["FusedxLSTM", "FusedxLSTMCell", "LayerTrace", "Trace", "backends", "compat", "convert",
           "recurrence", "resets_from_done"]

"""Other packages' recurrent layers on our kernels: modules with their contract, a function, and a patch.

:mod:`xlstm_fused.compat.rl` is not imported here, since it needs torchrl.
"""

from .flash import flashrnn
from .patch import Patch, patch_xlstm
from .slstm import SLSTMBlock, SLSTMCell, SLSTMLayer

__all__ = ["Patch", "SLSTMBlock", "SLSTMCell", "SLSTMLayer", "flashrnn", "patch_xlstm"]

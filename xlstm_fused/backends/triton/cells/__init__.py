"""The cells as functions of registers, matching csrc/cells line by line: a new one is one file and one line here.

A cell's module has

- ``GATES``, ``STATES``: the numbers of gates and of states, h included and first;
- ``forward(pre, s) -> next``: tuples of GATES, STATES and STATES float32 tiles;
- ``backward(pre, s, next, dnext) -> dpre, ds``: the exact derivative of ``forward``.

No cell here uses h other than through the recurrent product: ``s[0]`` and ``next[0]`` may hold anything, and ``ds[0]``,
which leaves out the path through that product, is zero and not looked at. A cell never touches memory.
"""

from . import lstm, slstm

MODULES = {"lstm": lstm, "slstm": slstm}

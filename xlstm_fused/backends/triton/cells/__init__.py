"""The cells as functions of registers, matching csrc/cells line by line: a new one is one file and one line here.

A cell's module has

- ``GATES``, ``STATES``: the numbers of gates and of states, h included and first;
- ``READS_H``: whether the step uses h other than through the recurrent product;
- ``forward(pre, s) -> next``: tuples of GATES, STATES and STATES float32 tiles;
- ``backward(pre, s, next, dnext) -> dpre, ds``: the exact derivative of ``forward``.

``ds[0]`` leaves out the path through the recurrent product. Where ``READS_H`` is false, backward's ``s[0]`` may hold
anything, and its ``ds[0]`` is not looked at. ``next[0]`` may hold anything in any case. A cell never touches memory.
"""

from . import gru, lstm, slstm

MODULES = {"lstm": lstm, "slstm": slstm, "gru": gru}

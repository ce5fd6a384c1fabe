// The table of cells: a new one is one header and one line here.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/slstm.h"

// X(name in Python, struct)
#define XLSTM_FUSED_CELLS(X) \
  X(lstm, Lstm)              \
  X(slstm, Slstm)            \
  X(gru, Gru)

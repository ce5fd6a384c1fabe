// The cells with CUDA kernels. Not gru, whose step reads h other than through the product: the backward has no path
// for that gradient.
#pragma once

#include "cells/lstm.h"
#include "cells/slstm.h"

// X(name in Python, struct)
#define XLSTM_FUSED_CUDA_CELLS(X) \
  X(lstm, Lstm)                   \
  X(slstm, Slstm)

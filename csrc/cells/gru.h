// GRU, its reset gate after the recurrent product: xlstm_fused/cells/gru.py.
#pragma once

#include "cells/cell.h"

namespace xlstm_fused {

struct Gru {
  static constexpr int G = 4;  // r, z, n, q
  static constexpr int S = 1;  // h
  static constexpr bool kReadsH = true;

  template <class V>
  static XF_HD void forward(const V (&pre)[G], const V (&s)[S], V (&next)[S]) {
    const V one(1);
    const V r = sigmoid(pre[0]), z = sigmoid(pre[1]), n = tanh(pre[2] + r * pre[3]);
    next[0] = (one - z) * n + z * s[0];
  }

  template <class V>
  static XF_HD void backward(const V (&pre)[G], const V (&s)[S], const V (&)[S], const V (&dnext)[S], V (&dpre)[G],
                             V (&ds)[S]) {
    const V one(1);
    const V r = sigmoid(pre[0]), z = sigmoid(pre[1]), n = tanh(pre[2] + r * pre[3]);
    const V dh = dnext[0];
    const V dn = dh * (one - z) * (one - n * n);
    dpre[0] = dn * pre[3] * r * (one - r);
    dpre[1] = dh * (s[0] - n) * z * (one - z);
    dpre[2] = dn;
    dpre[3] = dn * r;
    ds[0] = dh * z;
  }
};

}  // namespace xlstm_fused

// LSTM with a forget gate: xlstm_fused/cells/lstm.py.
#pragma once

#include "cells/cell.h"

namespace xlstm_fused {

struct Lstm {
  static constexpr int G = 4;  // i, f, g, o
  static constexpr int S = 2;  // h, c
  static constexpr bool kReadsH = false;

  template <class V>
  static XF_HD void forward(const V (&pre)[G], const V (&s)[S], V (&next)[S]) {
    const V i = sigmoid(pre[0]), f = sigmoid(pre[1]), g = tanh(pre[2]), o = sigmoid(pre[3]);
    const V c = f * s[1] + i * g;
    next[0] = o * tanh(c);
    next[1] = c;
  }

  template <class V>
  static XF_HD void backward(const V (&pre)[G], const V (&s)[S], const V (&next)[S], const V (&dnext)[S],
                             V (&dpre)[G], V (&ds)[S]) {
    const V one(1);
    const V i = sigmoid(pre[0]), f = sigmoid(pre[1]), g = tanh(pre[2]), o = sigmoid(pre[3]);
    const V tanh_c = tanh(next[1]);
    const V dh = dnext[0];
    const V dc = dnext[1] + dh * o * (one - tanh_c * tanh_c);
    dpre[0] = dc * g * i * (one - i);
    dpre[1] = dc * s[1] * f * (one - f);
    dpre[2] = dc * i * (one - g * g);
    dpre[3] = dh * tanh_c * o * (one - o);
    ds[0] = V(0);
    ds[1] = dc * f;
  }
};

}  // namespace xlstm_fused

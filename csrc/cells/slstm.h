// sLSTM, with exponential input gate, normaliser n and stabiliser m: xlstm_fused/cells/slstm.py.
#pragma once

#include "cells/cell.h"

namespace xlstm_fused {

struct Slstm {
  static constexpr int G = 4;  // i, f, z, o
  static constexpr int S = 4;  // h, c, n, m
  static constexpr bool kReadsH = false;

  template <class V>
  struct Gates {
    V log_f, m, i, f;
  };

  template <class V>
  static XF_HD Gates<V> exponential_gates(V pre_i, V pre_f, V n, V m) {
    const V zero(0);
    const V log_f = log_sigmoid(pre_f) + m;
    const V m1 = select(n == zero, pre_i, maximum(log_f, pre_i));
    // min(exp(x), 1), which only n == 0 needs, written inside the exponential: exp(x) may overflow.
    const V x = log_f - m1;
    return {log_f, m1, exp(pre_i - m1), exp(select(x > zero, zero, x))};
  }

  template <class V>
  static XF_HD void forward(const V (&pre)[G], const V (&s)[S], V (&next)[S]) {
    const auto [log_f, m, i, f] = exponential_gates(pre[0], pre[1], s[2], s[3]);
    const V c = f * s[1] + i * tanh(pre[2]);
    const V n = f * s[2] + i;
    next[0] = sigmoid(pre[3]) * c / n;
    next[1] = c;
    next[2] = n;
    next[3] = m;
  }

  template <class V>
  static XF_HD void backward(const V (&pre)[G], const V (&s)[S], const V (&next)[S], const V (&dnext)[S],
                             V (&dpre)[G], V (&ds)[S]) {
    const V zero(0), one(1), half(0.5);
    // m' is computed again, not read from next: pre is the rounded one of a 16-bit layer, and the comparisons below
    // must be exact.
    const auto [log_f, m, i, f] = exponential_gates(pre[0], pre[1], s[2], s[3]);
    const V z = tanh(pre[2]), o = sigmoid(pre[3]);
    const V ratio = next[1] / next[2];
    const V d_ratio = dnext[0] * o / next[2];
    const V dc = dnext[1] + d_ratio;
    const V dn = dnext[2] - d_ratio * ratio;
    // Gradients of the exponents i - m' and log_f - m'; the second is cut where it is held at 0.
    const V d_i = (dc * z + dn) * i;
    const V d_log_f = select(log_f - m > zero, zero, (dc * s[1] + dn * s[2]) * f);
    const V dm = dnext[3] - d_i - d_log_f;
    // m' is i or log_f; at an exact tie each takes half.
    const V to_i = select((s[2] == zero) | (pre[0] > log_f), one, select(pre[0] == log_f, half, zero));
    const V d_log_f_total = d_log_f + (one - to_i) * dm;
    dpre[0] = d_i + to_i * dm;
    dpre[1] = d_log_f_total * sigmoid(-pre[1]);
    dpre[2] = dc * i * (one - z * z);
    dpre[3] = dnext[0] * ratio * o * (one - o);
    ds[0] = zero;
    ds[1] = dc * f;
    ds[2] = dn * f;
    ds[3] = d_log_f_total;
  }
};

}  // namespace xlstm_fused

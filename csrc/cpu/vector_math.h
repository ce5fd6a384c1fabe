// exp, tanh, sigmoid and log sigmoid of vectors: polynomials for float, libm lane by lane for double.
//
// Each float function is within 2 ulp (exp 1), with subnormal results, infinities and NaN as in libm. The
// coefficients are minimax fits (Remez) of (e^r - 1 - r) / r^2 on |r| <= log(2) / 2 and of (log(1 + t) - t) / t^2 on
// [0, 1].
#pragma once

#include "cpu/simd.h"

namespace xlstm_fused::cpu::XLSTM_FUSED_ISA {
namespace {

#define XF_VECF template <int W> XF_HD

// The constant added to a number below 2^22 leaves its nearest integer in the low bits.
constexpr float kRounder = 0x1.8p23f;

// e^x = 2^k (1 + e): k as the low bits of `shifted` above those of kRounder, e = e^r - 1, |r| <= log(2) / 2.
template <int W>
struct SplitExp {
  Vec<float, W> shifted, e;
};

XF_VECF SplitExp<W> split_exp(Vec<float, W> x) {
  using V = Vec<float, W>;
  const V shifted = fma(x, V(0x1.715476p0f), V(kRounder));
  const V k = shifted - V(kRounder);
  V r = fma(k, V(-0x1.62e4p-1f), x);  // few digits: k times this is exact
  r = fma(k, V(-0x1.7f7d1cp-20f), r);
  V q = fma(V(0x1.a1a1f2p-13f), r, V(0x1.6d74e4p-10f));
  q = fma(q, r, V(0x1.11109p-7f));
  q = fma(q, r, V(0x1.5554aep-5f));
  q = fma(q, r, V(0x1.555556p-3f));
  q = fma(q, r, V(0.5f));
  return {shifted, fma(r * r, q, r)};
}

// 2^(k + offset), if k + offset is in [-126, 127]. Of kRounder's bits none is left by the shift.
template <int offset = 0, int W>
XF_HD Vec<float, W> scale(Vec<float, W> shifted) {
  return Vec<float, W>((shifted.bits() << 23) + ((127 + offset) << 23));
}

// |x| with the sign of `sign`.
XF_VECF Vec<float, W> with_sign(Vec<float, W> x, Vec<float, W> sign) {
  return Vec<float, W>((x.bits() & 0x7fffffff) | (sign.bits() & INT32_MIN));
}

XF_VECF Vec<float, W> minus_abs(Vec<float, W> x) { return Vec<float, W>(x.bits() | INT32_MIN); }

XF_VECF Vec<float, W> exp(Vec<float, W> x) {
  using V = Vec<float, W>;
  // Beyond these the result is infinite or zero anyway; NaN passes.
  x = select(x > V(89), V(89), select(x < V(-104), V(-104), x));
  const SplitExp<W> split = split_exp(x);
  const auto k = split.shifted.bits() - V(kRounder).bits();
  const auto half = k >> 1;
  // Two factors: 2^k alone has no float where the result is subnormal or overflows.
  return (split.e + V(1)) * V((half + 127) << 23) * V((k - half + 127) << 23);
}

// e^x for x <= 0.
XF_VECF Vec<float, W> exp_of_negative(Vec<float, W> x) {
  using V = Vec<float, W>;
  const SplitExp<W> split = split_exp(select(x < V(-104), V(-104), x));
  // 2^(k + 24), since 2^k may be subnormal.
  const V factor = scale<24>(split.shifted);
  return fma(factor, split.e, factor) * V(0x1p-24f);
}

XF_VECF Vec<float, W> tanh(Vec<float, W> x) {
  using V = Vec<float, W>;
  V t = minus_abs(x);
  t = t + t;
  t = select(t < V(-20), V(-20), t);  // tanh(10) rounds to 1
  const SplitExp<W> split = split_exp(t);
  const V factor = scale(split.shifted);
  // (e^t - 1) / (e^t + 1), each formed from the parts of e^t with one rounding.
  return with_sign(fma(factor, split.e, factor - V(1)) / fma(factor, split.e, factor + V(1)), x);
}

XF_VECF Vec<float, W> sigmoid(Vec<float, W> x) {
  using V = Vec<float, W>;
  const V e = exp_of_negative(minus_abs(x));  // no overflow, and small results keep their digits
  const V sum = e + V(1), lost = e - (sum - V(1));
  const V quotient = select(x < V(0), e, V(1)) / sum;
  return fma(-quotient, lost, quotient);  // what the sum's rounding lost, to first order
}

XF_VECF Vec<float, W> log_sigmoid(Vec<float, W> x) {
  using V = Vec<float, W>;
  const V t = exp_of_negative(minus_abs(x));
  V q = fma(V(0x1.2152a4p-9f), t, V(-0x1.d4ea54p-7f));
  q = fma(q, t, V(0x1.63dc08p-5f));
  q = fma(q, t, V(-0x1.5b643ep-4f));
  q = fma(q, t, V(0x1.01e55ep-3f));
  q = fma(q, t, V(-0x1.4b7aa2p-3f));
  q = fma(q, t, V(0x1.97d2e6p-3f));
  q = fma(q, t, V(-0x1.ffd0bep-3f));
  q = fma(q, t, V(0x1.555426p-2f));
  q = fma(q, t, V(-0x1.fffffcp-2f));
  const V log1p = fma(t * t, q, t);
  return select(x < V(0), x, V(0)) - log1p;
}
#undef XF_VECF

#define XF_LANE_BY_LANE(function)                                                               \
  template <int W>                                                                              \
  XF_HD Vec<double, W> function(Vec<double, W> x) {                                             \
    for (int lane = 0; lane < W; ++lane) x.raw[lane] = xlstm_fused::function(x.raw[lane]);      \
    return x;                                                                                   \
  }
XF_LANE_BY_LANE(exp)
XF_LANE_BY_LANE(tanh)
XF_LANE_BY_LANE(sigmoid)
XF_LANE_BY_LANE(log_sigmoid)
#undef XF_LANE_BY_LANE

}  // namespace
}  // namespace xlstm_fused::cpu::XLSTM_FUSED_ISA

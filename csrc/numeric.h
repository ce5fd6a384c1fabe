// The 16-bit storage types and their conversions, to nearest even, NaN kept.
#pragma once

#include <stdint.h>

#include "cells/cell.h"

namespace xlstm_fused {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

XF_HD uint32_t float_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

XF_HD float bits_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

XF_HD float widen(BFloat16 x) { return bits_float(uint32_t(x.bits) << 16); }

XF_HD float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  // Infinity and NaN, then normal numbers, then subnormal ones, which are multiples of 2^-24.
  if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
  if (magnitude >= 0x400) return bits_float(sign | ((magnitude + ((127 - 15) << 10)) << 13));
  return bits_float(sign | float_bits(float(magnitude) * 0x1p-24f));
}

XF_HD void narrow(float x, BFloat16& result) {
  const uint32_t bits = float_bits(x);
  // Rounding would carry a NaN of low payload into infinity.
  if (x != x) result.bits = uint16_t((bits >> 16) | 0x40);
  else result.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

XF_HD void narrow(float x, Half& result) {
  const uint32_t bits = float_bits(x);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    result.bits = uint16_t(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  } else if (magnitude >= 0x477ff000) {  // 65520, halfway past the largest
    result.bits = uint16_t(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // 2^-14: subnormal; adding 0.5 leaves the multiple of 2^-24 in the low bits
    result.bits = uint16_t(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000));
  } else {
    const uint32_t odd = (magnitude >> 13) & 1;
    result.bits = uint16_t(sign | ((magnitude - ((127u - 15u) << 23) + 0xfff + odd) >> 13));
  }
}

}  // namespace xlstm_fused

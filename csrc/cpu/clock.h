#pragma once

#include <chrono>

namespace xlstm_fused::cpu {

// Seconds since some moment. For files that are compiled once: its code is not inlined by force.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace xlstm_fused::cpu

// A barrier for the threads that share a job: they meet once per step, far too often for the operating system.
#pragma once

#include <stdint.h>

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

#include "cells/cell.h"
#include "cpu/stop.h"

namespace xlstm_fused::cpu {

class Barrier {
 public:
  void set_size(uint32_t size) { size_ = size; }

  // Returns true once all threads of the team have called it as often as this one, or false where the call is to end:
  // then for each of them sooner or later, since a stop is for good and whoever leaves does not come back.
  XF_HD bool wait(const Stop& stop) {
    const uint32_t turn = __atomic_load_n(&turn_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == size_) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&turn_, turn + 1, __ATOMIC_RELEASE);
      return true;
    }
    for (uint32_t spins = 0; __atomic_load_n(&turn_, __ATOMIC_ACQUIRE) == turn; ++spins) {
      if (stop.requested()) return false;
      if (spins < kSpins) pause();
      else yield();
    }
    return true;
  }

 private:
  // A few microseconds. Whoever is still missing then may be waiting for the processor that this thread spins on.
  static constexpr uint32_t kSpins = 2000;

  static XF_HD void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

  static XF_HD void yield() {
#if defined(__unix__) || defined(__APPLE__)
    sched_yield();
#endif
  }

  // A cache line each: the waiting ones read turn_ while the others still write arrived_.
  alignas(64) uint32_t arrived_ = 0;
  alignas(64) uint32_t turn_ = 0;
  uint32_t size_ = 1;
};

}  // namespace xlstm_fused::cpu

// Where the time of a call goes, for those who measure that.
#pragma once

#include "cells/cell.h"

namespace xlstm_fused::cpu {

enum Phase { kPacking, kInputProduct, kRecurrentProduct, kCell, kWaiting, kOther, kPhases };

constexpr const char* kPhaseNames[kPhases] = {"packing", "input product", "recurrent product", "cell", "waiting",
                                              "other"};

// Seconds of one thread, by phase, in a cache line of its own.
struct alignas(64) Seconds {
  double of[kPhases] = {};
};

// One thread's, which is in one phase after the other.
class Stopwatch {
 public:
  // nullptr: nobody measures, and a change of phase is a look at a pointer.
  XF_HD Stopwatch(Seconds* seconds, Phase phase) : seconds_(seconds), phase_(phase) { to(phase); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  XF_HD ~Stopwatch() { to(kOther); }

  XF_HD void to(Phase next) {
    if (__builtin_expect(seconds_ != nullptr, 0)) change(next);
  }

 private:
  void change(Phase next);

  Seconds* const seconds_;
  Phase phase_;
  double since_ = 0;  // 0: not started
};

}  // namespace xlstm_fused::cpu

// How a call that takes long ends before its time: the thread that made it asks now and then, and all threads leave.
#pragma once

#include <stdint.h>

#include "cells/cell.h"

namespace xlstm_fused::cpu {

class Stop {
 public:
  // `asked`, called from the calling thread at most every kSeconds, says whether to stop; nullptr: nobody asks. `every`
  // is the number of steps from one look at the clock to the next.
  Stop(bool (*asked)(), int64_t every);

  // Once it is true it stays so.
  XF_HD bool requested() const { return __atomic_load_n(&requested_, __ATOMIC_RELAXED); }

  // For the calling thread, once per step.
  XF_HD bool step() {
    if (__builtin_expect(--left_ < 0, 0)) look();
    return requested();
  }

  // For the calling thread: asks if it is time to.
  void look();

 private:
  // Asking takes the interpreter's lock, for which other threads may make it wait 5 ms.
  static constexpr double kSeconds = 0.2;

  bool (*const asked_)();
  const int64_t every_;
  int64_t left_;
  double next_;
  bool requested_ = false;
};

}  // namespace xlstm_fused::cpu

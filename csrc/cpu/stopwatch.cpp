#include "cpu/stopwatch.h"

#include "cpu/clock.h"

namespace xlstm_fused::cpu {

void Stopwatch::change(Phase next) {
  const double at = now();
  if (since_ > 0) seconds_->of[phase_] += at - since_;
  phase_ = next;
  since_ = at;
}

}  // namespace xlstm_fused::cpu

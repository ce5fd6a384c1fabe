#include "cpu/stop.h"

#include "cpu/clock.h"

namespace xlstm_fused::cpu {

Stop::Stop(bool (*asked)(), int64_t every)
    : asked_(asked), every_(asked ? every : INT64_MAX), left_(every_), next_(asked ? now() + kSeconds : 0) {}

void Stop::look() {
  left_ = every_;
  if (!asked_ || requested() || now() < next_) return;
  if (asked_()) __atomic_store_n(&requested_, true, __ATOMIC_RELAXED);
  next_ = now() + kSeconds;
}

}  // namespace xlstm_fused::cpu

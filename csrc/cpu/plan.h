// How a recurrence is split among threads. A pure function of sizes: it never changes a result.
#pragma once

#include <stdint.h>

#include <algorithm>

namespace xlstm_fused::cpu {

struct Shape {
  int64_t heads;  // of all directions
  int64_t B, T;   // sequences, steps of the longest
  int64_t D;      // units of a head
  int64_t gates;
  int64_t lanes, element_size;  // of the vectors, of the compute type
  int64_t inputs = 0;           // features whose products are part of the pass
};

// heads * tiles jobs, each the walk of about B / tiles sequences through one head, done by teams of `team` threads that
// share the head's units.
struct Plan {
  int64_t threads, team, tiles;

  int64_t teams() const { return threads / team; }
};

// More threads than any processor here has, and fewer than a runtime gives up on.
constexpr int64_t kMaxThreads = 1024;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the plan can be carried out.
inline bool is_valid(const Shape& s, const Plan& plan) {
  return plan.threads >= 1 && plan.threads <= kMaxThreads && plan.team >= 1 && plan.threads % plan.team == 0 &&
         plan.team <= divide_up(s.D, s.lanes) && plan.tiles >= 1 && plan.tiles <= s.B;
}

// A rough model in processor cycles; only comparisons between plans matter.
namespace cost {

constexpr double kRegion = 12000;      // waking and joining the threads
constexpr double kBarrier = 500;       // a meeting of a team
constexpr double kStep = 60;           // bookkeeping of a step
constexpr double kPointwise = 70;      // the cell, for one vector
constexpr int64_t kL1 = 24 << 10;      // what of each cache the matrix may take
constexpr int64_t kL2 = 448 << 10;
constexpr double kL2Bytes = 24;        // per cycle
constexpr double kFarBytes = 10;

// One step of one thread: rows sequences, `vectors` vectors of units.
inline double step(const Shape& s, int64_t rows, int64_t vectors) {
  const double products = double(s.gates * vectors * s.D);
  const double inputs = double(s.gates * vectors * s.inputs);
  const double arithmetic = (products * (rows == 1 ? 1.0 : 0.6) + inputs * 0.6) * double(rows);
  const double bytes = products * double(s.lanes * s.element_size);
  const double traffic = bytes <= kL1 ? 0 : bytes / (bytes <= kL2 ? kL2Bytes : kFarBytes);
  return kStep + std::max(arithmetic, traffic) + kPointwise * double(rows * vectors);
}

}  // namespace cost

// More rows in a job than this only cost cache.
constexpr int64_t kMaxRows = 64;

inline double total_cost(const Shape& s, const Plan& plan) {
  const int64_t vectors = divide_up(s.D, s.lanes);
  const int64_t rounds = divide_up(s.heads * plan.tiles, plan.teams());
  double step = cost::step(s, divide_up(s.B, plan.tiles), divide_up(vectors, plan.team));
  if (plan.team > 1) step += cost::kBarrier;
  return double(rounds) * double(s.T) * step + (plan.threads > 1 ? cost::kRegion : 0);
}

// The cheapest plan for at most `threads` threads.
inline Plan make_plan(const Shape& s, int64_t threads) {
  const int64_t fewest = divide_up(std::max(s.B, int64_t(1)), kMaxRows);
  Plan best{1, 1, fewest};
  double least = total_cost(s, best);
  const int64_t largest_team = std::min(threads, divide_up(s.D, s.lanes));
  for (int64_t team = 1; team <= largest_team; ++team) {
    const int64_t teams = threads / team;
    // One job for each team, or two where that comes out more even.
    for (int64_t rounds = 1; rounds <= 2; ++rounds) {
      // In a single step each tile would read all of the matrix again.
      const int64_t most = s.T <= 1 ? fewest : std::max(s.B, int64_t(1));
      const int64_t tiles = std::clamp(divide_up(teams * rounds, s.heads), fewest, most);
      const Plan plan{std::min(teams, s.heads * tiles) * team, team, tiles};
      const double total = total_cost(s, plan);
      if (plan.threads > 1 && total < least) {
        best = plan;
        least = total;
      }
    }
  }
  return best;
}

}  // namespace xlstm_fused::cpu

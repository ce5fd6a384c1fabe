#include "cpu/recurrence.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace xlstm_fused::cpu {
namespace {

constexpr int64_t kLine = 64;

// The most rows of a tile that meet a matrix of bfloat16 as such.
constexpr int64_t kFewRows = 8;

// The fewest units whose products are of the processor's tiles; and of an input, the fewest features.
constexpr int64_t kTiledUnits = 48, kTiledInputs = 24;

// The most weights of an input of bfloat16, of a head's gate, that a call multiplies itself. More, read again every few
// steps, push the recurrent matrix out of the second-level cache, and torch's product of all rows is as fast.
constexpr int64_t kBFloat16Weights = 512 * 512;

// Not by who else is in the batch: sums by tiles are rounded in another way than others.
bool is_for_tiles(int64_t T, int64_t D) { return T > 1 && D >= kTiledUnits; }

int64_t align(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// The vectors of units [begin, end) of member `index` of a team.
struct Range {
  int64_t begin, end;
};

Range member_range(int64_t vectors, int64_t team, int64_t index) {
  return {vectors * index / team, vectors * (index + 1) / team};
}

// The sequences of each tile, tile by tile, each by descending length. Sorted sequences are dealt out one by one where
// lengths differ, so that tiles take equally long.
std::vector<int64_t> tile_sequences(const Rows& rows, int64_t tiles) {
  std::vector<int64_t> sorted(rows.B);
  std::iota(sorted.begin(), sorted.end(), int64_t(0));
  if (!rows.length) return sorted;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](int64_t a, int64_t b) { return sequence_length(rows, a) > sequence_length(rows, b); });
  std::vector<int64_t> dealt;
  dealt.reserve(rows.B);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t i = tile; i < rows.B; i += tiles) dealt.push_back(sorted[i]);
  }
  return dealt;
}

// What the passes differ in, for the driver.
struct Pass {
  int64_t columns;  // of the rows that meet the packed matrix
  int64_t planes;   // arrays of the states' size
  Input input;      // I = 0: none
  void (*pack[kForms])(const Problem&, int64_t, int64_t, int64_t, int64_t, void*);  // nullptr: not in that form
};

// One call. run() is executed by every thread of the plan.
template <class Params>
class Call {
 public:
  Call(const Params& params, const Kernel& kernel, const Pass& pass, void (*body)(const Params&, const Job&),
       Stop& stop, double* seconds)
      : p_(params), kernel_(kernel), pass_(pass), body_(body), stop_(stop), target_(seconds) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    std::free(memory_);
    for (const Seconds& each : seconds_) {
      for (int phase = 0; phase < kPhases; ++phase) target_[phase] += each.of[phase];
    }
  }

  // One allocation: packed matrix, barriers, buffers of the teams, buffers of the threads.
  void prepare(const Plan& plan) {
    plan_ = plan;
    if (target_) seconds_.resize(plan.threads);
    const int64_t heads = p_.K * p_.N, tile_rows = divide_up(p_.rows.B, plan.tiles);
    const int64_t element = kernel_.element_size;
    const Buffers size = buffers(tile_rows, pass_.columns, p_.D, kernel_.lanes, element);
    vectors_ = vectors(p_.D, kernel_.lanes);
    form_ = choose_form(tile_rows);
    pack_ = pass_.pack[form_];
    shared_bytes_ = align((2 * size.exchange + pass_.planes * size.plane) * element);
    input_parts_ = takes_tiled_input(kernel_, p_.rows.T, p_.D, pass_.input.I) ? kernel_.input_parts : 0;
    const auto input_of = [&](int64_t rows) {
      return input_buffers(pass_.input, rows, divide_up(vectors_, plan.team), kernel_.gates, kernel_.lanes, element,
                           input_parts_);
    };
    // A tile with a sequence less may take a step more at a time.
    const int64_t input_elements =
        std::max(input_of(tile_rows).elements(), input_of(std::max<int64_t>(tile_rows - 1, 1)).elements());
    const InputPanels input = input_panels(pass_.input, kernel_.gates, vectors_, kernel_.lanes, element, input_parts_);
    // What is used once each thread packs when it comes to it; with several tiles each would do so again.
    once_ = p_.rows.T <= 1 && plan.tiles == 1;
    input_once_ = input_of(tile_rows).steps >= p_.rows.T && plan.tiles == 1;
    const int64_t panels = panel_bytes(), input_panels = pass_.input.I ? input.all : 0;
    panel_bytes_ = once_ ? 0 : align(panels);
    input_panel_bytes_ = input_once_ ? 0 : align(input_panels);
    once_bytes_ = align(std::max(once_ ? kGroup * panels : 0, input_once_ ? input_panels : 0) / vectors_);
    input_bytes_ = align(pass_.input.I ? input_elements * element : 0);
    own_bytes_ = align(tile_rows * (std::max<int64_t>(kernel_.gates, kGroup) * kernel_.lanes * element +
                                    int64_t(kernel_.cursor_bytes)));
    split_bytes_ = align(form_ == kTiles ? split_rows_bytes(tile_rows, pass_.columns) : 0);
    sequences_ = tile_sequences(p_.rows, plan.tiles);
    const int64_t barriers = align(int64_t(sizeof(Barrier)) * plan.teams());
    const int64_t bytes = heads * (panel_bytes_ + input_panel_bytes_) + barriers + plan.teams() * shared_bytes_ +
                          plan.threads * thread_bytes();
    memory_ = std::aligned_alloc(kLine, size_t(std::max(bytes, kLine)));
    if (!memory_) throw std::bad_alloc();
    panels_ = static_cast<char*>(memory_);
    input_panels_ = panels_ + heads * panel_bytes_;
    barriers_ = reinterpret_cast<Barrier*>(input_panels_ + heads * input_panel_bytes_);
    shared_ = reinterpret_cast<char*>(barriers_) + barriers;
    own_ = shared_ + plan.teams() * shared_bytes_;
    for (int64_t team = 0; team < plan.teams(); ++team) (new (barriers_ + team) Barrier)->set_size(uint32_t(plan.team));
  }

  // A thread's share of the packing, group by group of vectors; groups begin where members' ranges do.
  void pack(int64_t thread) {
    if (once_ && input_once_) return;
    Stopwatch watch(seconds_of(thread), kPacking);
    int64_t turn = 0;
    for (int64_t head = 0; head < p_.K * p_.N; ++head) {
      for (int64_t member = 0; member < plan_.team; ++member) {
        const Range range = member_range(vectors_, plan_.team, member);
        for (int64_t v = range.begin; v < range.end; v += kGroup, ++turn) {
          if (turn % plan_.threads != thread) continue;
          const int64_t end = std::min(range.end, v + kGroup);
          if (!once_) pack_(p_, head / p_.N, head % p_.N, v, end, panels_ + head * panel_bytes_);
          if constexpr (std::is_same_v<Params, LayerParams>) {
            if (!pass_.input.I || input_once_) continue;
            const auto pack_input = input_parts_ ? kernel_.pack_input_tiles : kernel_.pack_input;
            pack_input(p_, head / p_.N, head % p_.N, v, end, input_panels_ + head * input_panel_bytes_);
          }
        }
      }
    }
  }

  void run(int64_t thread) {
    run_jobs(thread);
    __atomic_add_fetch(&finished_, 1, __ATOMIC_RELEASE);
    Stopwatch watch(seconds_of(thread), kWaiting);
    // Others may have longer sequences, and only the calling thread can ask whether to stop.
    while (thread == 0 && __atomic_load_n(&finished_, __ATOMIC_ACQUIRE) < plan_.threads) {
      stop_.look();
      std::this_thread::yield();
    }
  }

 private:
  Seconds* seconds_of(int64_t thread) { return target_ ? &seconds_[thread] : nullptr; }

  int64_t thread_bytes() const { return own_bytes_ + split_bytes_ + input_bytes_ + once_bytes_; }

  // Of one head.
  int64_t panel_bytes() const {
    if (form_ == kTiles) return tile_panels(p_.D, kernel_.gates, vectors_).all;
    // Pairs of an odd D have one number more.
    return vectors_ * kernel_.lanes * (p_.D + 1) * kernel_.gates * (form_ == kWhole ? kernel_.element_size : 2);
  }

  Form choose_form(int64_t tile_rows) const {
    if (pass_.pack[kTiles] && is_for_tiles(p_.rows.T, p_.D) && kernel_.is_bfloat16(p_, kernel_.gates)) return kTiles;
    // A mask would make h something that is not bfloat16.
    if (pass_.pack[kPairs] && !p_.h_mask) return kPairs;
    // To widen halves costs instructions, which pay where few rows share what is read.
    const bool few = pass_.pack[kHalves] && p_.rows.T > 1 && tile_rows <= kFewRows;
    return few && kernel_.is_bfloat16(p_, kernel_.gates) ? kHalves : kWhole;
  }

  void run_jobs(int64_t thread) {
    const int64_t jobs = p_.K * p_.N * plan_.tiles;
    if (plan_.team == 1) {
      // Jobs may differ in length: whoever is free takes the next.
      for (int64_t j; (j = __atomic_fetch_add(&next_job_, 1, __ATOMIC_RELAXED)) < jobs;) run_job(j, thread);
      return;
    }
    for (int64_t j = thread / plan_.team; j < jobs; j += plan_.teams()) {
      run_job(j, thread);
      // The next job uses the same buffers.
      if (!barriers_[thread / plan_.team].wait(stop_)) return;
    }
  }

  void run_job(int64_t j, int64_t thread) {
    const int64_t head = j / plan_.tiles, tile = j % plan_.tiles, team = thread / plan_.team, B = p_.rows.B;
    // The first B % tiles tiles have one sequence more, as dealing them out leaves it.
    const int64_t few = B / plan_.tiles, more = B % plan_.tiles;
    const int64_t first = tile * few + std::min(tile, more);
    const Range range = member_range(vectors_, plan_.team, thread % plan_.team);
    char* const own = own_ + thread * thread_bytes();
    char* const split_rows = own + own_bytes_;
    char* const input = split_rows + split_bytes_;
    char* const once = input + input_bytes_;
    char* const panels = once_ ? once : panels_ + head * panel_bytes_;
    char* const input_panels = input_once_ ? once : input_panels_ + head * input_panel_bytes_;
    body_(p_, Job{head / p_.N, head % p_.N, sequences_.data() + first, few + (tile < more), range.begin, range.end,
                  &stop_, thread == 0, plan_.team > 1 ? barriers_ + team : nullptr, panels, once_, form_, input_panels,
                  input_once_, input_parts_, shared_ + team * shared_bytes_, own, split_rows, input,
                  seconds_of(thread)});
  }

  const Params& p_;
  const Kernel& kernel_;
  const Pass pass_;
  void (*const body_)(const Params&, const Job&);
  Stop& stop_;
  double* const target_;          // (kPhases,), to which the seconds of all threads are added in the end, or nullptr
  std::vector<Seconds> seconds_;  // of each thread
  Plan plan_{1, 1, 1};
  std::vector<int64_t> sequences_;
  int64_t vectors_ = 0, panel_bytes_ = 0, shared_bytes_ = 0, own_bytes_ = 0, next_job_ = 0, finished_ = 0;
  int64_t input_panel_bytes_ = 0, input_bytes_ = 0, split_bytes_ = 0, once_bytes_ = 0;
  void* memory_ = nullptr;
  Form form_ = kWhole;
  bool once_ = false, input_once_ = false;
  int input_parts_ = 0;
  void (*pack_)(const Problem&, int64_t, int64_t, int64_t, int64_t, void*) = nullptr;
  char* panels_ = nullptr;
  Barrier* barriers_ = nullptr;
  char* shared_ = nullptr;
  char* own_ = nullptr;
  char* input_panels_ = nullptr;
};

template <class Params>
void execute(Call<Params>& call, [[maybe_unused]] const Shape& shape, Plan plan) {
#if defined(_OPENMP)
  if (plan.threads > 1) {
    bool failed = false;
#pragma omp parallel num_threads(int(plan.threads))
    {
#pragma omp single
      {
        // The runtime may give fewer threads than asked for.
        const int64_t given = omp_get_num_threads();
        if (given != plan.threads) plan = make_plan(shape, given);
        try {
          call.prepare(plan);
        } catch (const std::bad_alloc&) {
          failed = true;  // an exception must not leave the region
        }
      }
      const int64_t thread = omp_get_thread_num();
      const bool works = !failed && thread < plan.threads;
      if (works) call.pack(thread);
#pragma omp barrier
      if (works) call.run(thread);
    }
    if (failed) throw std::bad_alloc();
    return;
  }
#else
  if (plan.threads > 1) plan = make_plan(shape, 1);
#endif
  call.prepare(plan);
  call.pack(0);
  call.run(0);
}

// Processor cycles by the model of plan.h: about 10 ms, and about 0.3 ms.
constexpr double kLong = 3e7, kLook = 1e6;

// Steps from one look at the clock to the next.
int64_t look_every(const Shape& shape, const Plan& plan) {
  const double steps = kLook * double(shape.T) / std::max(total_cost(shape, plan), 1.0);
  return int64_t(std::clamp(steps, 1.0, 4096.0));
}

bool is_empty(const Problem& p) { return p.rows.B == 0 || p.K * p.N * p.D == 0; }

}  // namespace

Shape shape_of(const Problem& p, const Kernel& kernel, int64_t inputs) {
  int64_t longest = p.rows.length ? 0 : p.rows.T;
  for (int64_t b = 0; p.rows.length && b < p.rows.B; ++b) longest = std::max(longest, sequence_length(p.rows, b));
  return {p.K * p.N, p.rows.B, longest, p.D, kernel.gates, kernel.lanes, kernel.element_size,
          inputs};
}

bool takes_tiled_input(const Kernel& kernel, int64_t T, int64_t D, int64_t inputs) {
  if (!kernel.pack_input_tiles || !is_for_tiles(T, D) || inputs < kTiledInputs) return false;
  return kernel.input_parts > 1 || inputs <= kBFloat16Weights / D;
}

bool is_long(const Shape& shape, const Plan& plan) { return shape.B > 0 && total_cost(shape, plan) > kLong; }

bool recurrence_fwd(const LayerParams& params, const Kernel& kernel, const Plan& plan, bool (*asked)(),
                    double* seconds) {
  if (is_empty(params)) return false;
  const Shape shape = shape_of(params, kernel, params.input.I);
  Stop stop(asked, look_every(shape, plan));
  Pass pass{params.D, kernel.states, params.input, {}};
  for (int form = 0; form < kForms; ++form) pass.pack[form] = kernel.pack[form].fwd;
  Call<LayerParams> call(params, kernel, pass, kernel.forward, stop, seconds);
  execute(call, shape, plan);
  return stop.requested();
}

bool recurrence_bwd(const BackwardParams& params, const Kernel& kernel, const Plan& plan, bool (*asked)(),
                    double* seconds) {
  if (is_empty(params)) return false;
  const Shape shape = shape_of(params, kernel);
  Stop stop(asked, look_every(shape, plan));
  Pass pass{kernel.gates * params.D, 2 * kernel.states, {}, {}};
  for (int form = 0; form < kForms; ++form) pass.pack[form] = kernel.pack[form].bwd;
  Call<BackwardParams> call(params, kernel, pass, kernel.backward, stop, seconds);
  execute(call, shape, plan);
  return stop.requested();
}

}  // namespace xlstm_fused::cpu

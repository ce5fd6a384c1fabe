// The time loop of one job, compiled once for each instruction set. No std:: templates here: an inline function built
// for one processor must not be linked into the code of another.
#include "kernels.h"

#ifndef XLSTM_FUSED_ISA
#error "XLSTM_FUSED_ISA names the instruction set"
#endif
#ifndef XLSTM_FUSED_VECTOR_BYTES
#if defined(__AVX512F__)
#define XLSTM_FUSED_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define XLSTM_FUSED_VECTOR_BYTES 32
#else
#define XLSTM_FUSED_VECTOR_BYTES 16
#endif
#endif

namespace xlstm_fused {
namespace XLSTM_FUSED_ISA {

#include "simd.h"
#include "../cells/lstm.h"
#include "../cells/slstm.h"

template <class S>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Batch rows of one register block: 4 accumulators each.
constexpr int kBlock = XLSTM_FUSED_VECTOR_BYTES == 64 ? 6 : 3;

template <class S, class Cell>
struct Run {
  using E = typename Compute<S>::type;
  static constexpr int W = XLSTM_FUSED_VECTOR_BYTES / sizeof(E), G = Cell::G, NS = Cell::S;
  static_assert(G == 4, "a register block has four accumulators for each batch row");
  using V = Vec<E, W>;

  const Params& p;
  const int64_t k, n, B, P, K, N, D, padded, count;
  const int64_t *order, *length;
  const E* packed;
  bool backwards;

  Run(const Params& params, const Context& context, const Job& job)
      : p(params), k(job.k), n(job.n), B(p.rows.B), P(p.rows.P), K(p.K), N(p.N), D(p.D), padded(pad(p.D)),
        count(job.end - job.begin), order(context.order + job.begin), length(context.length),
        packed(static_cast<const E*>(context.packed) + (k * N + n) * packed_size(D, false)),
        backwards((k == 1) != p.reverse) {}

  static int64_t pad(int64_t D) { return (D + W - 1) / W * W; }
  static int64_t packed_size(int64_t D, bool) { return pad(D) * G * D; }
  static int64_t scratch_size(int64_t D, int64_t count, bool backward) {
    return count * pad(D) * (NS + 1 + (backward ? G : 0));
  }

  int64_t position_row(int64_t b, int64_t t) const {
    const Rows& r = p.rows;
    return (r.time_offset ? r.time_offset[t] : t * r.time_stride) +
           (r.batch_offset ? r.batch_offset[b] : b * r.batch_stride);
  }
  int64_t row(int64_t b, int64_t step) const { return position_row(b, backwards ? length[b] - 1 - step : step); }
  // The row whose reset cuts the walk before `step`, or -1. A reset at position t separates t from t - 1 both ways.
  int64_t cut(int64_t b, int64_t step) const {
    if (!p.reset || (backwards && step == 0)) return -1;
    const int64_t r = row(b, backwards ? step - 1 : step);
    return p.reset[r] ? r : -1;
  }
  int64_t at_sequence(int64_t b) const { return ((k * B + b) * N + n) * D; }
  int64_t at_row(int64_t r) const { return ((r * K + k) * N + n) * D; }
  int64_t at_gate(int64_t r, int g) const { return (((r * K + k) * G + g) * N + n) * D; }
  int64_t sequences() const { return K * B * N * D; }
  int64_t rows() const { return P * K * N * D; }

  template <class T>
  static V read(const void* base, int64_t offset, int part) {
    return base ? load<V>(static_cast<const T*>(base) + offset, part) : V(0);
  }
  template <class T>
  static void write(void* base, int64_t offset, const V& x, int part) {
    if (base) store(static_cast<T*>(base) + offset, x, part);
  }
  int part(int64_t u) const { return D - u < W ? static_cast<int>(D - u) : W; }

  // State `s` that a walk starts from, or, where `source` >= 0, the one that a reset puts in its place.
  V start(int s, int64_t b, int64_t source, int64_t u) const {
    const int64_t one = p.reset_per_row && source >= 0 ? at_row(source) : at_sequence(b);
    const int64_t all = p.reset_per_row && source >= 0 ? rows() : sequences();
    if (s == 0) return read<S>(source < 0 ? p.h0 : p.reset_h, one + u, part(u));
    return read<E>(source < 0 ? p.s0 : p.reset_s, (s - 1) * all + one + u, part(u));
  }
  V masked(const V& h, int64_t b, int64_t u) const {
    return p.h_mask ? h * read<S>(p.h_mask, at_sequence(b) + u, part(u)) : h;
  }
  static V rounded(const V& h) {
    S narrow_h[W];
    store(narrow_h, h, W);
    return load<V>(narrow_h, W);
  }

  // acc[m] += sum over i of a[m][i] * panel[i]; the order of the sum does not depend on M.
  template <int M, int C>
  static void multiply(V (&acc)[M][C], const E* const (&a)[M], const E* const (&panel)[C], int64_t stride,
                       int64_t depth) {
    for (int64_t i = 0; i < depth; ++i) {
      V r[C];
      for (int c = 0; c < C; ++c) r[c] = V::load(panel[c] + i * stride);
      for (int m = 0; m < M; ++m) {
        const V x(typename V::Raw(typename V::Raw{} + a[m][i]));
        for (int c = 0; c < C; ++c) acc[m][c] = acc[m][c] + x * r[c];
      }
    }
  }

  // ---- forward ----
  struct Forward {
    E *now, *next, *carry;  // h entering the product of this step and of the next (count, padded); (NS-1, count, padded)
  };

  __attribute__((noinline)) void finish(const Forward& f, const V (&pre)[G], int64_t j, int64_t step, int64_t u) const {
    const int64_t b = order[j], r = row(b, step), slot = j * padded + u, plane = count * padded;
    const int size = part(u);
    V gates[G], state[NS], after[NS];
    for (int g = 0; g < G; ++g) {
      gates[g] = pre[g];
      if (p.pre) {
        write<S>(p.pre, at_gate(r, g) + u, pre[g], size);
        // The backward recomputes from what was stored; nothing here may be more exact than that is.
      }
    }
    state[0] = V(0);
    for (int s = 1; s < NS; ++s) state[s] = V::load(f.carry + (s - 1) * plane + slot);
    Cell::forward(gates, state, after);
    after[0] = rounded(after[0]);
    write<S>(p.output, at_row(r) + u, after[0], size);
    for (int s = 1; s < NS; ++s)
      if (p.states) write<E>(p.states, (s - 1) * rows() + at_row(r) + u, after[s], size);
    const bool last = step + 1 == length[b];
    const int64_t source = last ? -1 : cut(b, step + 1);
    if (last) {
      write<S>(p.h_n, at_sequence(b) + u, after[0], size);
      for (int s = 1; s < NS; ++s) write<E>(p.s_n, (s - 1) * sequences() + at_sequence(b) + u, after[s], size);
    }
    if (source >= 0)
      for (int s = 0; s < NS; ++s) after[s] = start(s, b, source, u);
    masked(after[0], b, u).store(f.next + slot);
    for (int s = 1; s < NS; ++s) after[s].store(f.carry + (s - 1) * plane + slot);
  }

  template <int M>
  void forward_block(const Forward& f, int64_t j, int64_t step, int64_t u) const {
    V acc[M][G];
    const E *h[M], *panel[G];
    for (int m = 0; m < M; ++m) {
      const int64_t r = row(order[j + m], step);
      for (int g = 0; g < G; ++g) acc[m][g] = read<S>(p.wx, at_gate(r, g) + u, part(u));
      h[m] = f.now + (j + m) * padded;
    }
    for (int g = 0; g < G; ++g) panel[g] = packed + u * G * D + g * W;
    multiply<M, G>(acc, h, panel, G * W, D);
    for (int m = 0; m < M; ++m) finish(f, acc[m], j + m, step, u);
  }

  void forward(E* scratch) const {
    const int64_t plane = count * padded;
    Forward f{scratch, scratch + plane, scratch + 2 * plane};
    for (int64_t j = 0; j < count; ++j) {
      const int64_t b = order[j], source = length[b] ? cut(b, 0) : -1;
      for (int64_t u = 0; u < D; u += W) {
        const V h = start(0, b, source, u);
        masked(h, b, u).store(f.now + j * padded + u);
        if (!length[b]) write<S>(p.h_n, at_sequence(b) + u, h, part(u));
        for (int s = 1; s < NS; ++s) {
          const V state = start(s, b, source, u);
          state.store(f.carry + (s - 1) * plane + j * padded + u);
          if (!length[b]) write<E>(p.s_n, (s - 1) * sequences() + at_sequence(b) + u, state, part(u));
        }
      }
    }
    int64_t active = count;
    for (int64_t step = 0; step < length[order[0]]; ++step) {
      while (length[order[active - 1]] <= step) --active;
      for (int64_t u = 0; u < D; u += W) {
        int64_t j = 0;
        for (; j + kBlock <= active; j += kBlock) forward_block<kBlock>(f, j, step, u);
        for (; j < active; ++j) forward_block<1>(f, j, step, u);
      }
      E* swap = f.now;
      f.now = f.next;
      f.next = swap;
    }
  }

  // ---- backward ----
  struct Backward {
    E *carry, *gates;  // (NS, count, padded) gradient of the state; (count, G, D) dpre of this step
  };

  void pointwise(const Backward& f, int64_t j, int64_t step, int64_t u) const {
    const int64_t b = order[j], r = row(b, step), slot = j * padded + u, plane = count * padded, source = cut(b, step);
    const int64_t before = step && source < 0 ? row(b, step - 1) : 0;
    const int size = part(u);
    V pre[G], state[NS], after[NS], d_after[NS], dpre[G], d_state[NS];
    for (int g = 0; g < G; ++g) pre[g] = read<S>(p.pre, at_gate(r, g) + u, size);
    state[0] = after[0] = V(0);
    d_after[0] = V::load(f.carry + slot) + read<S>(p.d_output, at_row(r) + u, size);
    for (int s = 1; s < NS; ++s) {
      const int64_t layer = (s - 1) * rows();
      state[s] = step && source < 0 ? read<E>(p.states, layer + at_row(before) + u, size) : start(s, b, source, u);
      after[s] = read<E>(p.states, layer + at_row(r) + u, size);
      d_after[s] = V::load(f.carry + s * plane + slot) + read<E>(p.d_states, layer + at_row(r) + u, size);
    }
    Cell::backward(pre, state, after, d_after, dpre, d_state);
    for (int g = 0; g < G; ++g) {
      if (p.d_pre) dpre[g] = dpre[g] + read<S>(p.d_pre, at_gate(r, g) + u, size);
      write<S>(p.dpre, at_gate(r, g) + u, dpre[g], size);
      store(f.gates + (j * G + g) * D + u, dpre[g], size);
    }
    for (int s = 1; s < NS; ++s) {
      divert<E>(p.dreset_s, s, b, source, u, d_state[s]);
      d_state[s].store(f.carry + s * plane + slot);
    }
  }

  // Where the walk was cut, the gradient goes to the reset state and no further.
  template <class T>
  void divert(void* target, int s, int64_t b, int64_t source, int64_t u, V& gradient) const {
    if (source < 0) return;
    if (target) {
      const int64_t all = p.reset_per_row ? rows() : sequences();
      const int64_t at = (s ? s - 1 : 0) * all + (p.reset_per_row ? at_row(source) : at_sequence(b)) + u;
      write<T>(target, at, read<T>(target, at, part(u)) + gradient, part(u));
    }
    gradient = V(0);
  }

  template <int M, int C>
  void backward_block(const Backward& f, int64_t j, int64_t step, int64_t u) const {
    V acc[M][C];
    const E *d[M], *panel[C];
    for (int m = 0; m < M; ++m) {
      for (int c = 0; c < C; ++c) acc[m][c] = V(0);
      d[m] = f.gates + (j + m) * G * D;
    }
    for (int c = 0; c < C; ++c) panel[c] = packed + (u + c * W) * G * D;
    multiply<M, C>(acc, d, panel, W, G * D);
    for (int m = 0; m < M; ++m) {
      const int64_t b = order[j + m], source = cut(b, step);
      for (int c = 0; c < C; ++c) {
        V dh = masked(acc[m][c], b, u + c * W);
        divert<S>(p.dreset_h, 0, b, source, u + c * W, dh);
        dh.store(f.carry + (j + m) * padded + u + c * W);
      }
    }
  }

  template <int C>
  void backward_panels(const Backward& f, int64_t active, int64_t step, int64_t u) const {
    int64_t j = 0;
    for (; j + kBlock <= active; j += kBlock) backward_block<kBlock, C>(f, j, step, u);
    for (; j < active; ++j) backward_block<1, C>(f, j, step, u);
  }

  void backward(E* scratch) const {
    const int64_t plane = count * padded;
    const Backward f{scratch, scratch + NS * plane};
    for (int64_t j = 0; j < count; ++j)
      for (int64_t u = 0; u < D; u += W) {
        const int64_t at = at_sequence(order[j]) + u;
        read<S>(p.d_h_n, at, part(u)).store(f.carry + j * padded + u);
        for (int s = 1; s < NS; ++s)
          read<E>(p.d_s_n, (s - 1) * sequences() + at, part(u)).store(f.carry + s * plane + j * padded + u);
      }
    int64_t active = 0;
    for (int64_t step = length[order[0]] - 1; step >= 0; --step) {
      while (active < count && length[order[active]] > step) ++active;
      for (int64_t j = 0; j < active; ++j)
        for (int64_t u = 0; u < D; u += W) pointwise(f, j, step, u);
      int64_t u = 0;
      for (; u + 4 * W <= padded; u += 4 * W) backward_panels<4>(f, active, step, u);
      for (; u < padded; u += W) backward_panels<1>(f, active, step, u);
    }
    for (int64_t j = 0; j < count; ++j)
      for (int64_t u = 0; u < D; u += W) {
        const int64_t at = at_sequence(order[j]) + u;
        write<S>(p.dh0, at, V::load(f.carry + j * padded + u), part(u));
        for (int s = 1; s < NS; ++s)
          write<E>(p.ds0, (s - 1) * sequences() + at, V::load(f.carry + s * plane + j * padded + u), part(u));
      }
  }

  // Forward panels are [unit / W][in][gate][W], backward panels [in / W][gate * D + out][W]; zero past D.
  static void pack(const Params& p, int64_t k, int64_t n, bool backward, void* target) {
    const int64_t D = p.D, N = p.N;
    E* out = static_cast<E*>(target) + (k * N + n) * packed_size(D, backward);
    for (int g = 0; g < G; ++g) {
      const S* weight = static_cast<const S*>(p.weight_hh) + ((k * G + g) * N + n) * D * D;
      for (int64_t o = 0; o < pad(D); ++o)
        for (int64_t i = 0; i < pad(D); ++i) {
          const E value = o < D && i < D ? widen(weight[o * D + i]) : E(0);
          if (backward && o < D) out[(i / W * G * D + g * D + o) * W + i % W] = value;
          if (!backward && i < D) out[(o / W * D + i) * G * W + g * W + o % W] = value;
        }
    }
  }
};

template <class S, class Cell>
void forward(const Params& p, const Context& context, const Job& job) {
  Run<S, Cell>(p, context, job).forward(static_cast<typename Compute<S>::type*>(context.scratch));
}
template <class S, class Cell>
void backward(const Params& p, const Context& context, const Job& job) {
  Run<S, Cell>(p, context, job).backward(static_cast<typename Compute<S>::type*>(context.scratch));
}

#define KERNEL(S, Cell) \
  { Run<S, Cell>::packed_size, Run<S, Cell>::scratch_size, Run<S, Cell>::pack, forward<S, Cell>, backward<S, Cell> }
#define KERNELS(Cell) { KERNEL(float, Cell), KERNEL(double, Cell), KERNEL(Bfloat16, Cell), KERNEL(_Float16, Cell) }
extern const KernelTable table;
const KernelTable table = {{KERNELS(Lstm), KERNELS(Slstm)}};

}  // namespace XLSTM_FUSED_ISA
}  // namespace xlstm_fused

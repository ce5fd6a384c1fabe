// Kernels for test_ptx_interpreter.py: instructions between registers, one row of output for each.
#include <stdint.h>

#define ROW(T, text, constraint, ...)                            \
  {                                                              \
    T r;                                                         \
    asm volatile(text : "=" constraint(r) : __VA_ARGS__);        \
    out[(row++) * int64_t(n) + i] = r;                           \
  }

extern "C" __global__ void integers(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, row = 0;
  if (i >= n) return;
  uint32_t x = a[i], y = b[i], z = c[i];
#define THREE(op) ROW(uint32_t, op " %0, %1, %2, %3;", "r", "r"(x), "r"(y), "r"(z))
#define TWO(op) ROW(uint32_t, op " %0, %1, %2;", "r", "r"(x), "r"(y))
#define ONE(op) ROW(uint32_t, op " %0, %1;", "r", "r"(x))
  THREE("mad.lo.s32") THREE("mad.hi.u32") THREE("shf.l.wrap.b32") THREE("shf.r.clamp.b32") THREE("prmt.b32")
  THREE("slct.u32.s32")
  TWO("mul.hi.u32") TWO("mul.hi.s32") TWO("div.u32") TWO("rem.u32") TWO("div.s32") TWO("rem.s32") TWO("min.s32")
  TWO("max.u32") TWO("add.sat.s32") TWO("shl.b32") TWO("shr.u32") TWO("shr.s32")
  ONE("popc.b32") ONE("clz.b32") ONE("brev.b32") ONE("bfind.u32") ONE("abs.s32") ONE("neg.s32") ONE("not.b32")
  ROW(uint32_t, "lop3.b32 %0, %1, %2, %3, 0x96;", "r", "r"(x), "r"(y), "r"(z))
  ROW(uint32_t, "lop3.b32 %0, %1, %2, %3, 0x1b;", "r", "r"(x), "r"(y), "r"(z))
  ROW(uint32_t, "lop3.b32 %0, %1, %2, %3, 0xe8;", "r", "r"(x), "r"(y), "r"(z))
  ROW(uint32_t, "bfe.u32 %0, %1, %2, %3;", "r", "r"(x), "r"(y & 31), "r"(z & 31))
  ROW(uint32_t, "bfe.s32 %0, %1, %2, %3;", "r", "r"(x), "r"(y & 31), "r"(z & 31))
  ROW(uint32_t, "bfi.b32 %0, %1, %2, %3, 7;", "r", "r"(x), "r"(y), "r"(z & 31))
}

extern "C" __global__ void wide(const uint64_t* a, const uint64_t* b, uint64_t* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, row = 0;
  if (i >= n) return;
  uint64_t x = a[i], y = b[i];
#define WIDE(op) ROW(uint64_t, op " %0, %1, %2;", "l", "l"(x), "l"(y))
  WIDE("mul.hi.u64") WIDE("mul.hi.s64") WIDE("mul.lo.u64") WIDE("div.u64") WIDE("rem.s64") WIDE("min.s64")
  ROW(uint64_t, "mul.wide.u32 %0, %1, %2;", "l", "r"(uint32_t(x)), "r"(uint32_t(y)))
  ROW(uint64_t, "mad.wide.s32 %0, %1, %2, %3;", "l", "r"(uint32_t(x)), "r"(uint32_t(y)), "l"(x))
  ROW(uint64_t, "shr.u64 %0, %1, %2;", "l", "l"(x), "r"(uint32_t(y & 127)))
  ROW(uint64_t, "cvt.s64.s32 %0, %1;", "l", "r"(uint32_t(y)))
}

extern "C" __global__ void floats(const float* a, const float* b, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, row = 0;
  if (i >= n) return;
  float x = a[i], y = b[i];
#define F1(op) ROW(float, op " %0, %1;", "f", "f"(x))
#define F2(op) ROW(float, op " %0, %1, %2;", "f", "f"(x), "f"(y))
  F2("add.rn.f32") F2("mul.f32") F2("div.rn.f32") F2("div.full.f32") F2("div.approx.f32") F2("min.f32")
  F2("max.NaN.f32") F2("copysign.f32") F2("add.rz.f32") F2("mul.rm.f32") F2("add.rp.f32")
  ROW(float, "fma.rn.f32 %0, %1, %2, %1;", "f", "f"(x), "f"(y))
  F1("ex2.approx.ftz.f32") F1("lg2.approx.f32") F1("rcp.approx.ftz.f32") F1("rcp.rn.f32") F1("tanh.approx.f32")
  F1("sqrt.rn.f32") F1("sqrt.approx.f32") F1("rsqrt.approx.f32") F1("abs.f32") F1("neg.f32")
  F1("cvt.rni.f32.f32") F1("cvt.rzi.f32.f32") F1("cvt.rmi.f32.f32") F1("cvt.rpi.f32.f32") F1("cvt.sat.f32.f32")
}

extern "C" __global__ void conversions(const float* a, const float* b, uint32_t* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, row = 0;
  if (i >= n) return;
  float x = a[i], y = b[i];
#define TO(op) ROW(uint32_t, op " %0, %1;", "r", "f"(x))
  TO("cvt.rni.s32.f32") TO("cvt.rzi.u32.f32") TO("cvt.rmi.s32.f32") TO("cvt.rpi.s32.f32") TO("cvt.rna.tf32.f32")
  ROW(uint32_t, "cvt.rn.f16x2.f32 %0, %1, %2;", "r", "f"(x), "f"(y))
  ROW(uint32_t, "cvt.rn.bf16x2.f32 %0, %1, %2;", "r", "f"(x), "f"(y))
  ROW(uint32_t, "cvt.rn.relu.bf16x2.f32 %0, %1, %2;", "r", "f"(x), "f"(y))
  ROW(uint32_t, "{.reg .b16 h; cvt.rn.bf16.f32 h, %1; mov.b32 %0, {h, h};}", "r", "f"(x))
  ROW(uint32_t, "{.reg .b16 h; cvt.rz.f16.f32 h, %1; mov.b32 %0, {h, h};}", "r", "f"(x))
  ROW(uint32_t,
      "{.reg .b32 s, t; cvt.rn.bf16x2.f32 s, %1, %2; cvt.rn.bf16x2.f32 t, %2, %1; fma.rn.bf16x2 %0, s, t, t;}", "r",
      "f"(x), "f"(y))
  ROW(uint32_t, "{.reg .b32 s, t; cvt.rn.f16x2.f32 s, %1, %2; cvt.rn.f16x2.f32 t, %2, %1; add.rn.f16x2 %0, s, t;}",
      "r", "f"(x), "f"(y))
#define TEST(op) ROW(uint32_t, "{.reg .pred p; setp." op ".f32 p, %1, %2; selp.b32 %0, 1, 0, p;}", "r", "f"(x), "f"(y))
  TEST("eq") TEST("ne") TEST("lt") TEST("ge") TEST("equ") TEST("neu") TEST("ltu") TEST("geu") TEST("num") TEST("nan")
  ROW(uint32_t,
      "{.reg .pred p, q; setp.lt.f32 q, %1, 0f00000000; setp.gt.or.f32 p, %1, %2, !q; selp.b32 %0, 1, 0, p;}", "r",
      "f"(x), "f"(y))
}

extern "C" __global__ void lanes(const uint32_t* a, uint32_t* out, int n) {
  int i = threadIdx.x, row = 0;
  uint32_t x = a[i];
  const uint32_t all = 0xffffffffu;
#define PUT(value) out[(row++) * int64_t(n) + i] = (value);
  PUT(__shfl_sync(all, x, (i * 7) & 31)) PUT(__shfl_up_sync(all, x, 3)) PUT(__shfl_down_sync(all, x, 5, 8))
  PUT(__shfl_xor_sync(all, x, 6)) PUT(__shfl_sync(all, x, 3, 8)) PUT(__ballot_sync(all, x & 1))
  PUT(__any_sync(all, x > 0xf0000000u)) PUT(__all_sync(all, x != 12345u))
  PUT(__match_any_sync(all, x & 3)) PUT(__reduce_add_sync(all, x)) PUT(__reduce_max_sync(all, x))
  PUT(uint32_t(__reduce_min_sync(all, int(x)))) PUT(__reduce_xor_sync(all, x))
  uint32_t half = 0;
  if (i % 3 == 0) half = __activemask() ^ __ballot_sync(__activemask(), x & 2);
  __syncwarp();
  PUT(half)
#if __CUDA_ARCH__ >= 900
  uint32_t elected;
  asm volatile("{.reg .pred p; .reg .b32 r; elect.sync r|p, %1; selp.b32 %0, 1, r, p;}" : "=r"(elected) : "r"(all));
  PUT(elected)
#endif
}

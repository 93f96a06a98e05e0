// CUDA on the CPU, for tests: the .cu files compile with g++ against this header. Every CUDA thread of a block is a
// fiber; blocks run one after another. What hardware leaves undefined fails here: shared memory starts as NaN,
// barriers that not all threads reach abort, asynchronous copies land as late as they may, threads and blocks run in
// any order.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "shim_fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct __attribute__((may_alias, aligned(16))) uint4 {
  unsigned x, y, z, w;
};
struct __attribute__((may_alias, aligned(8))) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

#define threadIdx (::shim::current()->fiber->thread)
#define blockIdx (::shim::current()->block_index)
#define blockDim (::shim::current()->block_size)
#define gridDim (::shim::current()->grid_size)

// A place in the source, which distinguishes barriers.
#define SHIM_SITE             \
  ([]() -> const char* {      \
    static const char s[2]{}; \
    return s;                 \
  }())
#define SHIM_LANE static_cast<int>(::shim::current()->fiber->id & 31)

#define __syncthreads() ::shim::block_barrier(SHIM_SITE)
#define __syncwarp(...) ::shim::warp_barrier(0xffffffffu, SHIM_SITE)
#define __shfl_sync(mask, value, lane) ::shim::exchange((mask), (value), static_cast<int>(lane) & 31, SHIM_SITE)
#define __shfl_xor_sync(mask, value, bits) \
  ::shim::exchange((mask), (value), SHIM_LANE ^ static_cast<int>(bits), SHIM_SITE)
#define __shfl_down_sync(mask, value, delta) \
  ::shim::exchange((mask), (value), std::min(31, SHIM_LANE + static_cast<int>(delta)), SHIM_SITE)
#define __ballot_sync(mask, predicate) ::shim::ballot((mask), (predicate), SHIM_SITE)
#define __popc(bits) __builtin_popcount(bits)

#define LRP_SHARED(type, name, dims) \
  static const char name##_key = 0;  \
  using name##_type = type dims;     \
  auto& name = *static_cast<name##_type*>(::shim::shared_memory(&name##_key, sizeof(name##_type)))

#define LRP_LAUNCH(kernel, grid, block, stream, ...) \
  (static_cast<void>(stream), ::shim::launch(grid, block, #kernel, [&] { (kernel)(__VA_ARGS__); }))

#define LRP_LAST_ERROR() ::shim::last_error()

namespace lrpkernels {

inline int64_t max_grid_x() { return shim::settings().max_grid_x; }

template <typename value_t>
inline value_t read_global(const value_t* address) {
  shim::access(address, sizeof(value_t), false, true);
  return *address;
}

template <typename value_t>
inline value_t read_global_if(bool condition, const value_t* address, value_t fallback) {
  shim::access(address, sizeof(value_t), false, condition);
  return condition ? *address : fallback;
}

template <typename value_t>
inline void write_global(value_t* address, value_t value) {
  shim::access(address, sizeof(value_t), true, true);
  *address = value;
}

inline void async_copy16(void* shared, const void* address, bool condition) {
  shim::async_issue(shared, address, 16, condition);
}

inline void async_commit() { shim::async_commit(); }

template <int kPending>
inline void async_wait() {
  shim::async_wait(kPending);
}

inline int count_up(int* counter, int by) { return __atomic_fetch_add(counter, by, __ATOMIC_RELAXED); }

inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  return (finite ? bits + 0x1000u : bits) & 0xFFFFE000u;
}

// The numbers of a 32-bit word of a matrix fragment.
inline int fragment_numbers(float, uint32_t word, float (&number)[2]) {
  word &= 0xFFFFE000u;  // tensor cores do not see the other bits
  std::memcpy(&number[0], &word, sizeof word);
  return 1;
}
inline int fragment_numbers(__half, uint32_t word, float (&number)[2]) {
  __half pair[2];
  std::memcpy(pair, &word, sizeof word);
  number[0] = __half2float(pair[0]), number[1] = __half2float(pair[1]);
  return 2;
}
inline int fragment_numbers(__nv_bfloat16, uint32_t word, float (&number)[2]) {
  __nv_bfloat16 pair[2];
  std::memcpy(pair, &word, sizeof word);
  number[0] = __bfloat162float(pair[0]), number[1] = __bfloat162float(pair[1]);
  return 2;
}

// The fragment layout of mma.sync m16n8k8 (tf32) and m16n8k16 (16-bit), from the PTX ISA.
template <typename scalar_t>
SHIM_NO_TSAN void multiply_tiles(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const unsigned id = shim::current()->fiber->id, lane = id % 32;
  shim::Warp& warp = shim::current()->warps[id / 32];
  for (int r = 0; r < 4; ++r) warp.fragment[lane][r] = a[r];
  for (int r = 0; r < 2; ++r) warp.fragment[lane][4 + r] = b[r];
  shim::warp_barrier(0xffffffffu, SHIM_SITE);
  for (int r = 0; r < 4; ++r) {
    const unsigned row = lane / 4 + (r / 2) * 8, column = 2 * (lane % 4) + r % 2;
    for (unsigned word = 0; word < 8; ++word) {
      const uint32_t left = warp.fragment[row % 8 * 4 + word % 4][(row >= 8 ? 1 : 0) + (word >= 4 ? 2 : 0)];
      const uint32_t right = warp.fragment[column * 4 + word % 4][4 + (word >= 4 ? 1 : 0)];
      float x[2], y[2];
      const int numbers = fragment_numbers(scalar_t{}, left, x);
      fragment_numbers(scalar_t{}, right, y);
      for (int n = 0; n < numbers; ++n) d[r] += x[n] * y[n];
    }
  }
  shim::warp_barrier(0xffffffffu, SHIM_SITE);
}

}  // namespace lrpkernels

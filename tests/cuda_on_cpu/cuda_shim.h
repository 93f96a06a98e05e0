// CUDA on the CPU, for tests: the .cu files compile with g++ against this header. Every CUDA thread of a block is a
// fiber; blocks run one after another. What hardware leaves undefined is made to fail: shared memory starts as NaN,
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

struct alignas(16) uint4 {
  unsigned x, y, z, w;
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

// A place in the source, to tell one barrier from another.
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

}  // namespace lrpkernels

// Typed global memory access: 16 bytes at a time where address and length allow, arithmetic types in registers.
#pragma once
#include <type_traits>

#include "../common/geometry.h"
#include "launchers.h"
#include "runtime.cuh"

namespace lrpkernels::cuda {

constexpr int kVectorBytes = 16;
constexpr int kThreads = 256;  // of a block
// At least 4 blocks (half of the threads) of a multiprocessor: 64 registers each. Three 16-byte loads in flight per
// thread cover the latency of memory at that occupancy; without the bound the compiler spills to reach a higher one.
constexpr int kBlocksPerSm = 4;

template <typename scalar_t>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename scalar_t>
using arithmetic_t = typename Arithmetic<scalar_t>::type;

// Elements of a 16-byte vector.
template <typename scalar_t>
constexpr int kVectorWidth = kVectorBytes / static_cast<int>(sizeof(scalar_t));

__device__ __forceinline__ float to_arithmetic(float x) { return x; }
__device__ __forceinline__ double to_arithmetic(double x) { return x; }
__device__ __forceinline__ float to_arithmetic(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_arithmetic(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename scalar_t>
__device__ __forceinline__ scalar_t to_storage(arithmetic_t<scalar_t> x) {
  return x;
}
template <>
__device__ __forceinline__ __half to_storage<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 to_storage<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// kVec neighbouring elements in registers, in the arithmetic type.
template <typename acc_t, int kVec>
struct Pack {
  acc_t value[kVec];
  __device__ __forceinline__ acc_t& operator[](int j) { return value[j]; }
  __device__ __forceinline__ acc_t operator[](int j) const { return value[j]; }
};

template <int kVec, typename acc_t>
__device__ __forceinline__ Pack<acc_t, kVec> filled(acc_t x) {
  Pack<acc_t, kVec> pack;
#pragma unroll
  for (int j = 0; j < kVec; ++j) pack[j] = x;
  return pack;
}

// What one access moves: 16 bytes, or 8 or 4 where vectors are shorter than that.
template <int kBytes>
struct Word {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <int kVec, typename scalar_t>
using word_t = typename Word<kVec* static_cast<int>(sizeof(scalar_t))>::type;

// kVec is 1, or fills one or several whole words; then the address must be a multiple of their size.
template <int kVec, typename scalar_t>
__device__ __forceinline__ Pack<arithmetic_t<scalar_t>, kVec> load(const scalar_t* address) {
  Pack<arithmetic_t<scalar_t>, kVec> pack;
  if constexpr (kVec == 1) {
    pack[0] = to_arithmetic(read_global(address));
  } else {
    using Raw = word_t<kVec, scalar_t>;
    constexpr int kWidth = sizeof(Raw) / sizeof(scalar_t);
    static_assert(kVec % kWidth == 0, "whole words");
#pragma unroll
    for (int part = 0; part < kVec / kWidth; ++part) {
      const Raw raw = read_global(reinterpret_cast<const Raw*>(address) + part);
      scalar_t element[kWidth];
      memcpy(element, &raw, sizeof raw);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) pack[part * kWidth + j] = to_arithmetic(element[j]);
    }
  }
  return pack;
}

// One 16-byte vector, zeros when `condition` is false.
template <typename scalar_t>
__device__ __forceinline__ Pack<arithmetic_t<scalar_t>, kVectorWidth<scalar_t>> load_if(bool condition,
                                                                                        const scalar_t* address) {
  constexpr int kWidth = kVectorWidth<scalar_t>;
  const uint4 raw = read_global_if(condition, reinterpret_cast<const uint4*>(address), uint4{0, 0, 0, 0});
  scalar_t element[kWidth];
  memcpy(element, &raw, kVectorBytes);
  Pack<arithmetic_t<scalar_t>, kWidth> pack;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) pack[j] = to_arithmetic(element[j]);
  return pack;
}

template <int kVec, typename scalar_t>
__device__ __forceinline__ void store(scalar_t* address, const Pack<arithmetic_t<scalar_t>, kVec>& pack) {
  if constexpr (kVec == 1) {
    write_global(address, to_storage<scalar_t>(pack[0]));
  } else {
    using Raw = word_t<kVec, scalar_t>;
    constexpr int kWidth = sizeof(Raw) / sizeof(scalar_t);
    static_assert(kVec % kWidth == 0, "whole words");
#pragma unroll
    for (int part = 0; part < kVec / kWidth; ++part) {
      scalar_t element[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) element[j] = to_storage<scalar_t>(pack[part * kWidth + j]);
      Raw raw;
      memcpy(&raw, element, sizeof raw);
      write_global(reinterpret_cast<Raw*>(address) + part, raw);
    }
  }
}

// Calls body with std::true_type or std::false_type.
template <typename Body>
void with_flag(bool flag, const Body& body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

// What launchers return where sizes exceed the kernels' indices or the grid: cudaErrorInvalidValue.
constexpr int kInvalidValue = 1;

// True when every pointer (null counts as aligned) is a multiple of 16.
template <typename... Pointers>
bool all_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % kVectorBytes == 0) && ...);
}

// Blocks for `work` items at `per_block` each; kernels loop over what exceeds the grid limit.
inline unsigned grid_for(int64_t work, int64_t per_block) {
  const int64_t blocks = ceil_div(work, per_block);
  return static_cast<unsigned>(blocks < max_grid_x() ? blocks : max_grid_x());
}

// Calls body with a value of the storage type; a dtype that is not one is cudaErrorInvalidValue.
template <typename Body>
int with_storage(LrpDtype dtype, const Body& body) {
  switch (dtype) {
    case kFloat32:
      return body(float{});
    case kFloat64:
      return body(double{});
    case kFloat16:
      return body(__half{});
    case kBFloat16:
      return body(__nv_bfloat16{});
  }
  return kInvalidValue;
}

}  // namespace lrpkernels::cuda

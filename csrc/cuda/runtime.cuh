// The one header through which kernels see CUDA. Under nvcc it is CUDA; under g++ it is the shim that the tests put on
// the include path, in which every CUDA thread is a fiber. Kernels reach global memory only through the functions here
// and in memory.cuh, so that the shim can count it.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

// A static shared array: LRP_SHARED(float, tile, [32][33]);
#define LRP_SHARED(type, name, dims) __shared__ type name dims

#define LRP_LAUNCH(kernel, grid, block, stream, ...) \
  (kernel)<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

// The error of the launches since the last call, as an int.
#define LRP_LAST_ERROR() static_cast<int>(cudaGetLastError())

namespace lrpkernels {

constexpr int64_t kMaxGridX = 2147483647;

inline int64_t max_grid_x() { return kMaxGridX; }

template <typename value_t>
__device__ __forceinline__ value_t read_global(const value_t* address) {
  return __ldg(address);
}

// The loads of a warp stay in step when some lanes have nothing to read: those get `fallback`.
template <typename value_t>
__device__ __forceinline__ value_t read_global_if(bool condition, const value_t* address, value_t fallback) {
  return condition ? __ldg(address) : fallback;
}

template <typename value_t>
__device__ __forceinline__ void write_global(value_t* address, value_t value) {
  *address = value;
}

}  // namespace lrpkernels

#else

#include "cuda_shim.h"

#endif

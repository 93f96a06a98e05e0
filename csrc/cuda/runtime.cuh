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

// Copies 16 bytes to shared memory, past the registers where the hardware can; zeros when `condition` is false. It
// lands after the async_wait that covers its group, for other threads after a barrier behind that.
__device__ __forceinline__ void async_copy16(void* shared, const void* address, bool condition) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(address), "r"(condition ? 16 : 0));
#else
  const uint4 zero = {0, 0, 0, 0};
  *static_cast<uint4*>(shared) = condition ? __ldg(static_cast<const uint4*>(address)) : zero;
#endif
}

// Closes the group of the copies issued so far.
__device__ __forceinline__ void async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::);
#endif
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

}  // namespace lrpkernels

#else

#include "cuda_shim.h"

#endif

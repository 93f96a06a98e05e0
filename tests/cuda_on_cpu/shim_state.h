// What the shim knows of a launch: settings, counts, fibers, warps, the block that runs.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define SHIM_NO_TSAN __attribute__((no_sanitize("thread")))
#else
#define SHIM_NO_TSAN
#endif
#if !defined(__x86_64__)
#error "the fiber switch is written for x86-64"
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace shim {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;  // of a block
constexpr size_t kStackBytes = 64 * 1024, kPage = 4096;
constexpr size_t kSharedBytes = 48 * 1024;  // static shared memory of a block
constexpr size_t kArenaBytes = 256 * 1024, kRedZone = 128;
constexpr int kMaxShared = 64;  // shared arrays of a kernel
constexpr int kInvalidConfiguration = 9;
constexpr uint64_t kSector = 32;

struct Index {
  unsigned x, y, z;
};

struct Settings {
  int order = 0;  // of threads and blocks: 0 ascending, 1 descending, otherwise the seed of a random one
  int64_t max_grid_x = 2147483647;
  bool count = false;
};
inline Settings& settings() {
  static thread_local Settings value;
  return value;
}

// Global memory as the warps see it. Bytes are those the lanes request; sectors are the 32-byte pieces touched by one
// access of one warp. Block sectors count a piece once per block, as a perfect first-level cache would, launch sectors
// once per launch, as a perfect second-level cache would.
struct Counts {
  int64_t bytes, sectors, block_sectors, launch_sectors, launches;
};
using Sectors = std::vector<uint64_t>;
inline Counts& counts() {
  static thread_local Counts value{};
  return value;
}

inline int& error_state() {
  static thread_local int value = 0;
  return value;
}
inline int last_error() {
  const int error = error_state();
  error_state() = 0;
  return error;
}

enum class State : uint8_t { kReady, kBlockBarrier, kWarpBarrier, kDone };

struct AsyncCopy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kDone;
  unsigned id = 0;
  const char* site = nullptr;  // of the barrier it waits at
  unsigned mask = 0;
  unsigned block_phase = 0, warp_phase = 0;
  uint32_t accesses[2] = {};  // loads, stores
  Index thread{};
  std::vector<AsyncCopy> copies;               // issued
  std::vector<std::vector<AsyncCopy>> groups;  // committed, oldest first
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif
};

// One access of a warp: the lanes' n-th load, or n-th store.
struct Access {
  int64_t bytes = 0;
  Sectors sectors;
};

struct Warp {
  uint64_t slot[kWarp] = {};
  uint32_t fragment[kWarp][16] = {};  // of matrix instructions
  std::vector<Access> accesses[2];    // loads, stores
};

struct Block {
  dim3 grid_size, block_size;
  Index block_index{};
  unsigned threads = 0;
  const char* name = "";
  std::function<void()> kernel;
  // Plain arrays in what fibers touch: ThreadSanitizer would see the insides of a vector as shared data of the kernel.
  Fiber* fibers = nullptr;
  Warp* warps = nullptr;
  Fiber* fiber = nullptr;
  void* main_stack_pointer = nullptr;
  struct Shared {
    const void* key;
    char* data;
    size_t bytes;
  };
  Shared shared[kMaxShared];
  int arrays = 0;
  char* arena = nullptr;
  size_t arena_used = 0, shared_bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  void* main_fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* main_tsan = nullptr;
  char tsan_start = 0, tsan_end = 0, tsan_barrier[2] = {};
  char tsan_warp_barrier[kMaxThreads / kWarp][2] = {};
#endif
};

inline Block*& current() {
  static thread_local Block* block = nullptr;
  return block;
}

[[noreturn]] inline void die(const char* what) {
  const Block* block = current();
  std::fprintf(stderr, "cuda shim: kernel %s, block (%u, %u, %u), thread %u: %s\n", block->name, block->block_index.x,
               block->block_index.y, block->block_index.z, block->fiber ? block->fiber->id : 0, what);
  std::abort();
}

}  // namespace shim

// The functions that tests and benchmarks call.
extern "C" {
__attribute__((weak, visibility("default"))) void shim_configure(int order, int64_t max_grid_x, int count) {
  shim::settings() = {order, max_grid_x, count != 0};
  shim::counts() = {};
}
__attribute__((weak, visibility("default"))) void shim_counts(shim::Counts* result) { *result = shim::counts(); }
}

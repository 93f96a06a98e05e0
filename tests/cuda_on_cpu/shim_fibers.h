// Threads of the shim: switching between fibers, barriers, shuffles, and the launch that runs block after block.
#pragma once
#include <sys/mman.h>

#include "shim_memory.h"

namespace shim {

extern "C" void shim_switch(void** save_stack_pointer, void* load_stack_pointer);
__asm__(R"(
.text
.weak shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch,.-shim_switch
)");

SHIM_NO_TSAN inline void yield_to_main([[maybe_unused]] bool finished = false) {
  Block* block = current();
  Fiber* fiber = block->fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(finished ? nullptr : &fiber->fake_stack, block->main_bottom, block->main_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(block->main_tsan, 1);  // 1: the switch itself does not synchronise
#endif
  shim_switch(&fiber->stack_pointer, block->main_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &block->main_bottom, &block->main_size);
#endif
}

SHIM_NO_TSAN inline void fiber_main() {
  Block* block = current();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->main_bottom, &block->main_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&block->tsan_start);
#endif
  block->kernel();
  if (!block->fiber->copies.empty() || !block->fiber->groups.empty()) die("exits with asynchronous copies under way");
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&block->tsan_end);
#endif
  block->fiber->state = State::kDone;
  yield_to_main(true);
  std::abort();
}

SHIM_NO_TSAN inline void resume(Block* block, Fiber* fiber) {
  block->fiber = fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->main_fake_stack, fiber->stack, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber->tsan, 1);
#endif
  shim_switch(&block->main_stack_pointer, fiber->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->main_fake_stack, nullptr, nullptr);
#endif
  block->fiber = nullptr;
}

SHIM_NO_TSAN __attribute__((noinline)) inline void block_barrier(const char* site) {
  Fiber* fiber = current()->fiber;
  fiber->state = State::kBlockBarrier;
  fiber->site = site;
#if defined(__SANITIZE_THREAD__)
  char* phase = &current()->tsan_barrier[fiber->block_phase++ & 1];
  __tsan_release(phase);
#endif
  yield_to_main();
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(phase);
#endif
}

SHIM_NO_TSAN inline void warp_barrier(unsigned mask, const char* site) {
  Fiber* fiber = current()->fiber;
  fiber->state = State::kWarpBarrier;
  fiber->mask = mask;
  fiber->site = site;
#if defined(__SANITIZE_THREAD__)
  char* phase = &current()->tsan_warp_barrier[fiber->id / kWarp][fiber->warp_phase++ & 1];
  __tsan_release(phase);
#endif
  yield_to_main();
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(phase);
#endif
}

template <typename value_t>
SHIM_NO_TSAN value_t exchange(unsigned mask, value_t value, int source, const char* site) {
  static_assert(sizeof(value_t) <= 8, "shuffles move up to 8 bytes");
  const unsigned id = current()->fiber->id;
  Warp& warp = current()->warps[id / kWarp];
  std::memcpy(&warp.slot[id % kWarp], &value, sizeof value);
  warp_barrier(mask, site);
  if (!((mask >> source) & 1)) die("a shuffle reads a lane that is not in its mask");
  std::memcpy(&value, &warp.slot[source], sizeof value);
  warp_barrier(mask, site + 1);
  return value;
}

SHIM_NO_TSAN inline unsigned ballot(unsigned mask, bool predicate, const char* site) {
  const unsigned id = current()->fiber->id;
  Warp& warp = current()->warps[id / kWarp];
  warp.slot[id % kWarp] = predicate;
  warp_barrier(mask, site);
  unsigned bits = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    if ((mask >> lane) & 1) bits |= static_cast<unsigned>(warp.slot[lane] != 0) << lane;
  warp_barrier(mask, site + 1);
  return bits;
}

// Releases the warps whose lanes have all arrived; true if any was.
SHIM_NO_TSAN inline bool release_warps(Block* block) {
  bool released = false;
  for (unsigned base = 0; base < block->threads; base += kWarp) {
    for (unsigned lane = 0; lane < kWarp && base + lane < block->threads; ++lane) {
      Fiber& fiber = block->fibers[base + lane];
      if (fiber.state != State::kWarpBarrier) continue;
      block->fiber = &fiber;
      if (!((fiber.mask >> lane) & 1)) die("a lane calls a *_sync function with a mask that lacks it");
      bool complete = true;
      for (unsigned other = 0; other < kWarp && complete; ++other) {
        if (!((fiber.mask >> other) & 1)) continue;
        if (base + other >= block->threads) die("a mask names a lane outside the block");
        const Fiber& peer = block->fibers[base + other];
        if (peer.state == State::kDone) die("a mask names a lane that has exited");
        if (peer.state != State::kWarpBarrier) {
          complete = false;
        } else if (peer.mask != fiber.mask || peer.site != fiber.site) {
          die("the lanes of a mask meet at different *_sync calls");
        }
      }
      if (!complete) continue;
      const unsigned mask = fiber.mask;
      for (unsigned other = 0; other < kWarp; ++other)
        if ((mask >> other) & 1) block->fibers[base + other].state = State::kReady;
      released = true;
    }
  }
  block->fiber = nullptr;
  return released;
}

// A permutation of 0 .. n - 1 after settings().order.
class Order {
 public:
  explicit Order(unsigned n) : order_(settings().order), state_(0x9E3779B97F4A7C15ull * (order_ + 1)), index_(n) {
    for (unsigned i = 0; i < n; ++i) index_[i] = order_ == 1 ? n - 1 - i : i;
  }
  const std::vector<unsigned>& next() {
    if (order_ > 1)
      for (size_t i = index_.size(); i > 1; --i) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        std::swap(index_[i - 1], index_[state_ % i]);
      }
    return index_;
  }

 private:
  int order_;
  uint64_t state_;
  std::vector<unsigned> index_;
};

SHIM_NO_TSAN inline void run_block(Block* block, Order& order) {
  for (unsigned i = 0; i < block->threads; ++i) {
    Fiber& fiber = block->fibers[i];
    fiber.state = State::kReady;
    fiber.block_phase = fiber.warp_phase = 0;
    fiber.accesses[0] = fiber.accesses[1] = 0;
#if defined(__SANITIZE_ADDRESS__)
    // The last fiber on this stack never returned from its first frames.
    __asan_unpoison_memory_region(fiber.stack + kStackBytes - kPage, kPage);
#endif
    auto** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(fiber.stack) + kStackBytes) & ~uintptr_t(15));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fiber.stack_pointer = top;
  }
  for (int i = 0; i < block->arrays; ++i) std::memset(block->shared[i].data, 0xFF, block->shared[i].bytes);
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&block->tsan_start);
#endif
  for (;;) {
    bool ran = false;
    for (const unsigned i : order.next()) {
      if (block->fibers[i].state != State::kReady) continue;
      resume(block, &block->fibers[i]);
      ran = true;
    }
    if (release_warps(block)) continue;
    unsigned done = 0, waiting = 0;
    const char* site = nullptr;
    bool same_site = true;
    for (unsigned i = 0; i < block->threads; ++i) {
      const Fiber& fiber = block->fibers[i];
      if (fiber.state == State::kDone) ++done;
      if (fiber.state != State::kBlockBarrier) continue;
      ++waiting;
      same_site = same_site && (site == nullptr || site == fiber.site);
      site = fiber.site;
    }
    if (done == block->threads) break;
    if (waiting == block->threads) {
      if (!same_site) die("the threads meet at different __syncthreads");
      for (unsigned i = 0; i < block->threads; ++i) block->fibers[i].state = State::kReady;
    } else if (waiting > 0 && waiting + done == block->threads) {
      die("__syncthreads is not reached by all threads: some have exited");
    } else if (!ran) {
      die("deadlock");
    }
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&block->tsan_end);
#endif
  if (settings().count) count_block(block);
}

// Fibers with their stacks (a guard page below each), kept for the next launch.
struct Pool {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  void reserve(unsigned threads) {
    while (fibers.size() < threads) {
      char* base = static_cast<char*>(
          mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      mprotect(base, kPage, PROT_NONE);
      Fiber fiber;
      fiber.stack = base + kPage;
      fiber.id = static_cast<unsigned>(fibers.size());
#if defined(__SANITIZE_THREAD__)
      fiber.tsan = __tsan_create_fiber(0);
#endif
      fibers.push_back(std::move(fiber));
    }
    warps.resize((fibers.size() + kWarp - 1) / kWarp);
  }
  ~Pool() {
    for (Fiber& fiber : fibers) {
      munmap(fiber.stack - kPage, kStackBytes + kPage);
#if defined(__SANITIZE_THREAD__)
      __tsan_destroy_fiber(fiber.tsan);
#endif
    }
  }
};

inline void launch(dim3 grid, dim3 threads, const char* name, std::function<void()> kernel) {
  static thread_local Pool pool;
  const uint64_t count = uint64_t(threads.x) * threads.y * threads.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (count < 1 || count > kMaxThreads || threads.z > 64 || blocks == 0 || grid.x > 2147483647u || grid.y > 65535u ||
      grid.z > 65535u) {
    error_state() = kInvalidConfiguration;
    return;
  }
  Block block;
  block.grid_size = grid;
  block.block_size = threads;
  block.name = name;
  block.threads = static_cast<unsigned>(count);
  block.kernel = std::move(kernel);
  pool.reserve(block.threads);
  block.fibers = pool.fibers.data();
  block.warps = pool.warps.data();
  block.arena = static_cast<char*>(std::aligned_alloc(kRedZone, kArenaBytes));
  std::memset(block.arena, 0xFF, kArenaBytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block.arena, kArenaBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  block.main_tsan = __tsan_get_current_fiber();
#endif
  for (unsigned i = 0; i < block.threads; ++i)
    block.fibers[i].thread = {i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y)};
  Block* const outer = current();
  current() = &block;
  Order order(block.threads);
  const uint64_t step = settings().order > 1 ? 7919 : 1;  // coprime to the number of blocks, or in order
  const bool shuffled = blocks % step != 0;
  for (uint64_t i = 0; i < blocks; ++i) {
    uint64_t b = settings().order == 1 ? blocks - 1 - i : shuffled ? i * step % blocks : i;
    block.block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                         static_cast<unsigned>(b / (uint64_t(grid.x) * grid.y))};
    run_block(&block, order);
  }
  current() = outer;
  ++counts().launches;
  for (int store = 0; store < 2; ++store) {
    counts().launch_sectors += keep_distinct(launch_sectors()[store]);
    launch_sectors()[store].clear();
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block.arena, kArenaBytes);
#endif
  std::free(block.arena);
}

}  // namespace shim

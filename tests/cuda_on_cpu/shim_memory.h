// Memory of the shim: shared arrays, asynchronous copies, and the count of global accesses.
#pragma once
#include <algorithm>
#include <cstring>

#include "shim_state.h"

namespace shim {

// The block's shared array for this key; the first thread to request it allocates it.
SHIM_NO_TSAN __attribute__((noinline)) inline void* shared_memory(const void* key, size_t bytes) {
  Block* block = current();
  for (int i = 0; i < block->arrays; ++i)
    if (block->shared[i].key == key) return block->shared[i].data;
  block->shared_bytes += (bytes + 15) / 16 * 16;
  if (block->shared_bytes > kSharedBytes) die("more than 48 KiB of static shared memory");
  char* data = block->arena + block->arena_used;
  block->arena_used += (bytes + kRedZone - 1) / kRedZone * kRedZone + kRedZone;
  if (block->arrays == kMaxShared) die("too many shared arrays");
  block->shared[block->arrays++] = {key, data, bytes};
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(data, bytes);
#endif
  return data;
}

// Every global access passes here. `active` is false for a lane that takes part in the access but touches nothing.
SHIM_NO_TSAN inline void access(const void* address, size_t bytes, bool store, bool active) {
  const auto at = reinterpret_cast<uint64_t>(address);
  if (active && at % bytes != 0) die("misaligned global access");
  if (!settings().count) return;
  Fiber* fiber = current()->fiber;
  std::vector<Access>& accesses = current()->warps[fiber->id / kWarp].accesses[store];
  const uint32_t ordinal = fiber->accesses[store]++;
  if (accesses.size() <= ordinal) accesses.resize(ordinal + 1);
  if (!active) return;
  Access& entry = accesses[ordinal];
  entry.bytes += static_cast<int64_t>(bytes);
  for (uint64_t sector = at / kSector; sector <= (at + bytes - 1) / kSector; ++sector) entry.sectors.push_back(sector);
}

inline int64_t keep_distinct(Sectors& sectors) {
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  return static_cast<int64_t>(sectors.size());
}

// Of the current launch: loads and stores.
inline Sectors* launch_sectors() {
  static thread_local Sectors value[2];
  return value;
}

inline void count_block(Block* block) {
  Sectors own[2];
  for (unsigned w = 0; w * kWarp < block->threads; ++w) {
    Warp& warp = block->warps[w];
    for (int store = 0; store < 2; ++store) {
      for (Access& entry : warp.accesses[store]) {
        counts().bytes += entry.bytes;
        counts().sectors += keep_distinct(entry.sectors);
        own[store].insert(own[store].end(), entry.sectors.begin(), entry.sectors.end());
      }
      warp.accesses[store].clear();
    }
  }
  for (int store = 0; store < 2; ++store) {
    counts().block_sectors += keep_distinct(own[store]);
    launch_sectors()[store].insert(launch_sectors()[store].end(), own[store].begin(), own[store].end());
  }
}

// Asynchronous copies to shared memory: the destination is undefined (NaN) from issue to the wait that covers it.
SHIM_NO_TSAN inline void async_issue(void* to, const void* from, size_t bytes, bool active) {
  if (reinterpret_cast<uint64_t>(to) % bytes != 0) die("misaligned shared destination of an asynchronous copy");
  access(from, bytes, false, active);
  std::memset(to, 0xFF, bytes);
  current()->fiber->copies.push_back({to, active ? from : nullptr, bytes});
}

inline void async_commit() {
  Fiber* fiber = current()->fiber;
  fiber->groups.push_back(std::move(fiber->copies));
  fiber->copies.clear();
}

// Waits until at most `pending` committed groups are under way.
inline void async_wait(size_t pending) {
  Fiber* fiber = current()->fiber;
  while (fiber->groups.size() > pending) {
    for (const AsyncCopy& copy : fiber->groups.front()) {
      if (copy.from) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    fiber->groups.erase(fiber->groups.begin());
  }
}

}  // namespace shim

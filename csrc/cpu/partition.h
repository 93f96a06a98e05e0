// How CPU kernels cut a tensor into fixed tasks, and the switches from run-time to compile-time parameters.
#pragma once
#include <algorithm>
#include <type_traits>

#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "storage.h"

namespace lrpkernels::cpu {

// Elements per task: large enough to hide the scheduling, small enough to balance and to stay in the L2 cache while all
// targets of a task pass over the same forward values.
constexpr int64_t kTaskElements = 16384;
// The forward elements, cut into tasks. A span is a run of elements in memory: a plane, within one channel (the scale
// is one number), or a pixel, over all channels (the scale is a vector). Without a scale all elements are one plane.
struct Partition {
  int64_t channels;
  bool pixels;             // inner == 1: spans are pixels, else planes
  int64_t span;            // elements of a plane, or channels of a pixel
  int64_t spans;           // planes or pixels
  int64_t per_task;        // elements of a plane per task, or pixels per task
  int64_t tasks_per_span;  // planes only
  int64_t tasks;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Partition partition(const LrpExtent& extent, bool per_channel) {
  Partition p{};
  p.channels = per_channel ? extent.channels : 1;
  p.pixels = p.channels > 1 && extent.inner == 1;
  p.span = p.pixels ? p.channels : p.channels == 1 ? extent.numel : extent.inner;
  p.spans = extent.numel / p.span;
  if (p.pixels) {
    p.per_task = std::max<int64_t>(1, kTaskElements / p.span);
    p.tasks = ceil_div(p.spans, p.per_task);
  } else {
    p.per_task = std::min(p.span, kTaskElements);
    p.tasks_per_span = ceil_div(p.span, p.per_task);
    p.tasks = p.spans * p.tasks_per_span;
  }
  return p;
}

// Calls visit(offset, count, channel, task) for every span, or part of a span, of the tasks [first, last).
template <bool kPixels, typename Visit>
LRP_ALWAYS_INLINE void for_each_span(const Partition& p, int64_t first, int64_t last, const Visit& visit) {
  if constexpr (kPixels) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t end = std::min(p.spans, (task + 1) * p.per_task);
      for (int64_t pixel = task * p.per_task; pixel < end; ++pixel) visit(pixel * p.span, p.span, 0, task);
    }
    return;
  }
  int64_t plane = first / p.tasks_per_span, part = first % p.tasks_per_span, channel = plane % p.channels;
  for (int64_t task = first; task < last; ++task) {
    const int64_t begin = part * p.per_task;
    visit(plane * p.span + begin, std::min(p.per_task, p.span - begin), channel, task);
    if (++part == p.tasks_per_span) {
      part = 0;
      ++plane;
      if (++channel == p.channels) channel = 0;
    }
  }
}

template <typename Body>
void run_parallel(const Partition& p, const Body& body) {
  const int64_t elements = p.pixels ? p.per_task * p.span : p.per_task;
  torch::stable::parallel_for(0, p.tasks, std::max<int64_t>(1, kTaskElements / elements),
                              [&](int64_t first, int64_t last) { run_widest(body, first, last); });
}

// Calls body with a value of the storage type.
template <typename Body>
void with_storage(LrpDtype dtype, const Body& body) {
  switch (dtype) {
    case kFloat32:
      return body(float{});
    case kFloat64:
      return body(double{});
    case kBFloat16:
      return body(bfloat16{});
    case kFloat16:
      break;
  }
  fail("no CPU kernel for storage dtype ", static_cast<int>(dtype));
}

// Calls body with std::true_type or std::false_type.
template <typename Body>
void with_flag(bool flag, const Body& body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

}  // namespace lrpkernels::cpu

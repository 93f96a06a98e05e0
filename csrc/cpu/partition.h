// How CPU kernels cut a tensor into fixed tasks, the switches from run-time to compile-time parameters, and what all
// backends share.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "storage.h"

namespace lrpkernels::cpu {

// Elements per task: large enough to hide the scheduling, small enough to balance and to stay in the L2 cache while all
// targets of a task pass over the same forward values.
constexpr int64_t kTaskElements = 16384;
// Elements whose sums over targets, or whose scales, are kept in a buffer in the L1 cache.
constexpr int64_t kBlock = 1024;
// A plane of fewer elements is too short to be a loop of its own.
constexpr int64_t kShortPlane = 128;

// What a span, a run of elements in memory, consists of: a plane, within one channel (the scale is one number); a
// pixel, over all channels (the scale is a vector); or several short planes (the scale is expanded to a vector).
// Without a scale all elements are one plane.
enum class Span { kPlane, kPixel, kShortPlanes };

// The forward elements, cut into tasks.
struct Partition {
  int64_t channels;
  Span kind;
  int64_t span;            // elements of a plane, or channels of a pixel
  int64_t spans;           // planes or pixels
  int64_t per_task;        // kPlane: elements; kPixel: pixels; kShortPlanes: planes
  int64_t tasks_per_span;  // kPlane only
  int64_t tasks;

  int64_t elements_per_task() const { return kind == Span::kPlane ? per_task : per_task * span; }
  // Partial sums of the per-channel reduction: one for a task, a task's channel, or a plane.
  int64_t partial_sums() const {
    return kind == Span::kPlane ? tasks : kind == Span::kPixel ? tasks * channels : spans;
  }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Partition partition(const LrpExtent& extent, bool per_channel) {
  Partition p{};
  p.channels = per_channel ? extent.channels : 1;
  const bool pixels = p.channels > 1 && extent.inner == 1;
  p.span = pixels ? p.channels : p.channels == 1 ? extent.numel : extent.inner;
  p.spans = extent.numel / p.span;
  p.kind = pixels ? Span::kPixel : p.spans > 1 && p.span < kShortPlane ? Span::kShortPlanes : Span::kPlane;
  if (p.kind == Span::kPlane) {
    p.per_task = std::min(p.span, kTaskElements);
    p.tasks_per_span = ceil_div(p.span, p.per_task);
    p.tasks = p.spans * p.tasks_per_span;
  } else {
    p.per_task = std::max<int64_t>(1, (pixels ? kTaskElements : kBlock) / p.span);
    p.tasks = ceil_div(p.spans, p.per_task);
  }
  return p;
}

// Calls visit(offset, count, channel, task) for every span, part of a span, or block of short planes of the tasks
// [first, last); channel is that of the first element.
template <Span kKind, typename Visit>
LRP_ALWAYS_INLINE void for_each_span(const Partition& p, int64_t first, int64_t last, const Visit& visit) {
  if constexpr (kKind == Span::kPixel) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t end = std::min(p.spans, (task + 1) * p.per_task);
      for (int64_t pixel = task * p.per_task; pixel < end; ++pixel) visit(pixel * p.span, p.span, 0, task);
    }
  } else if constexpr (kKind == Span::kShortPlanes) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t plane = task * p.per_task, planes = std::min(p.per_task, p.spans - plane);
      visit(plane * p.span, planes * p.span, plane % p.channels, task);
    }
  } else {
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
}

// Calls visit(offset, count, channel, skip, task) for blocks of at most kBlock elements of a span.
template <Span kKind, typename Visit>
LRP_ALWAYS_INLINE void for_each_block(const Partition& tasks, int64_t first, int64_t last, const Visit& visit) {
  for_each_span<kKind>(tasks, first, last,
                       [&](int64_t offset, int64_t count, int64_t channel, int64_t task) LRP_INLINE {
                         for (int64_t begin = 0; begin < count; begin += kBlock)
                           visit(offset + begin, std::min(kBlock, count - begin), channel, begin, task);
                       });
}

// The scales of a block of short planes, one for each element.
template <typename acc_t>
LRP_ALWAYS_INLINE void expand_scales(const Partition& p, const acc_t* scale, int64_t channel, int64_t count,
                                     acc_t* __restrict expanded) {
  for (int64_t begin = 0; begin < count; begin += p.span) {
    const acc_t value = scale[channel];
    for (int64_t i = 0; i < p.span; ++i) expanded[begin + i] = value;
    if (++channel == p.channels) channel = 0;
  }
}

// The totals of each channel from its partial sums.
template <typename acc_t>
void channel_totals(const Partition& p, const double* partial, acc_t* sums) {
  std::vector<double> totals(p.channels, 0.0);
  const int64_t repeat = p.kind == Span::kPlane ? p.tasks_per_span : 1;
  for (int64_t i = 0, n = p.partial_sums(); i < n; ++i) totals[i / repeat % p.channels] += partial[i];
  for (int64_t c = 0; c < p.channels; ++c) sums[c] = static_cast<acc_t>(totals[c]);
}

template <typename Body>
void run_parallel(const Partition& p, const Body& body) {
  torch::stable::parallel_for(0, p.tasks, std::max<int64_t>(1, kTaskElements / p.elements_per_task()),
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

// Calls body with the kind of span as a constant.
template <typename Body>
void with_span(Span kind, const Body& body) {
  switch (kind) {
    case Span::kPlane:
      return body(std::integral_constant<Span, Span::kPlane>{});
    case Span::kPixel:
      return body(std::integral_constant<Span, Span::kPixel>{});
    case Span::kShortPlanes:
      return body(std::integral_constant<Span, Span::kShortPlanes>{});
  }
}

// Calls body with std::true_type or std::false_type.
template <typename Body>
void with_flag(bool flag, const Body& body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

// What every family's Backend has; see common/pointwise_ops.h.
struct CpuBackend {
  static constexpr StorageDtypes kDtypes{false, "float32, float64 or bfloat16 on CPU"};

  struct Guard {
    explicit Guard(const Tensor&) {}
    void* stream() const { return nullptr; }
  };
};

}  // namespace lrpkernels::cpu

// CPU kernels of the pointwise ops: one pass over memory, parallel over fixed tasks, so that results do not depend on
// the number of threads.
#include "../common/pointwise_ops.h"

#include <torch/csrc/stable/library.h>

#include "../common/rule_math.h"
#include "partition.h"

namespace lrpkernels::cpu {
namespace {

// A stabiliser, typed.
template <typename acc_t>
struct Stabilizer {
  acc_t value;
  const acc_t* per_image;  // [B] or null
  int64_t image;           // elements of one

  explicit Stabilizer(const LrpEpsilon& epsilon)
      : value(static_cast<acc_t>(epsilon.value)), per_image(In{epsilon.per_image}), image(epsilon.image) {}

  // Calls visit(begin, count, epsilon) for the parts of the elements [offset, offset + count) that share a stabiliser;
  // begin counts from offset.
  template <typename Visit>
  LRP_ALWAYS_INLINE void for_each_part(int64_t offset, int64_t count, const Visit& visit) const {
    if (per_image == nullptr) return visit(0, count, value);
    for (int64_t begin = 0; begin < count;) {
      const int64_t at = offset + begin, left = image - at % image;
      const int64_t size = left < count - begin ? left : count - begin;
      visit(begin, size, per_image[at / image]);
      begin += size;
    }
  }
};

// The kernels' arguments, typed. The last three are those of the backward kernels.
template <typename scalar_t>
struct EpsilonScale {
  using acc_t = arithmetic_t<scalar_t>;
  LrpExtent extent;
  Partition tasks;
  Stabilizer<acc_t> epsilon;
  const scalar_t* multiplier;  // [T, numel]
  const scalar_t* addend;      // [T, numel] or null
  const scalar_t* output;      // [numel] or null
  const acc_t* scale;          // [C] or null
  scalar_t* result;            // [T, numel]: s, or the gradient of multiplier
  const scalar_t* grad;        // [T, numel]
  scalar_t* grad_output;       // [numel] or null
  double* partial;             // [Partition::partial_sums()] or null
};

template <typename scalar_t, bool kAddend, bool kOutput, Span kKind>
struct ForwardBody : EpsilonScale<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    for_each_span<kKind>(this->tasks, first, last,
                         [this](int64_t offset, int64_t count, int64_t channel, int64_t) LRP_INLINE {
                           if constexpr (kKind == Span::kShortPlanes) {
                             acc_t expanded[kBlock];
                             expand_scales(this->tasks, this->scale, channel, count, expanded);
                             of_images(offset, count, channel, expanded);
                           } else {
                             of_images(offset, count, channel, this->scale);
                           }
                         });
  }

  LRP_ALWAYS_INLINE void of_images(int64_t offset, int64_t count, int64_t channel, const acc_t* scales) const {
    this->epsilon.for_each_part(offset, count, [&](int64_t begin, int64_t size, acc_t epsilon) LRP_INLINE {
      all_targets(offset + begin, size, channel, kKind == Span::kPlane ? scales : scales + begin, epsilon);
    });
  }

  LRP_ALWAYS_INLINE void all_targets(int64_t offset, int64_t count, int64_t channel, const acc_t* __restrict scales,
                                     const acc_t epsilon) const {
    const scalar_t* __restrict u = kOutput ? this->output + offset : nullptr;
    const acc_t constant = kKind == Span::kPlane && scales != nullptr ? scales[channel] : acc_t(1);
    for (int64_t target = 0; target < this->extent.targets; ++target) {
      const int64_t at = target * this->extent.numel + offset;
      const scalar_t* __restrict g = this->multiplier + at;
      const scalar_t* __restrict g2 = kAddend ? this->addend + at : nullptr;
      scalar_t* __restrict s = this->result + at;
      for (int64_t i = 0; i < count; ++i) {
        acc_t value = load(g[i]);
        if constexpr (kAddend) value += load(g2[i]);
        if constexpr (kOutput) value *= relu_ratio<acc_t>(load(u[i]), epsilon);
        store(s[i], value * (kKind == Span::kPlane ? constant : scales[i]));
      }
    }
  }
};

template <typename scalar_t, bool kAddend, bool kOutput, Span kKind, bool kSum>
struct BackwardBody : EpsilonScale<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;
  // A short plane is summed in the arithmetic type, everything longer in double.
  using sum_t = std::conditional_t<kKind == Span::kShortPlanes, acc_t, double>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    for_each_span<kKind>(this->tasks, first, last,
                         [this](int64_t offset, int64_t count, int64_t channel, int64_t task) LRP_INLINE {
                           if constexpr (kKind == Span::kShortPlanes)
                             short_planes(offset, count, channel);
                           else
                             long_span(offset, count, channel, task);
                         });
  }

  LRP_ALWAYS_INLINE void long_span(int64_t offset, int64_t count, int64_t channel, int64_t task) const {
    constexpr bool kPixel = kKind == Span::kPixel;
    double* sums = !kSum ? nullptr : this->partial + (kPixel ? task * this->tasks.channels : task);
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int64_t size = count - begin < kBlock ? count - begin : kBlock;
      const int64_t skip = kPixel ? begin : 0;
      const acc_t* scales = this->scale == nullptr ? nullptr : this->scale + channel + skip;
      block(offset + begin, size, scales, !kSum ? nullptr : sums + skip);
    }
  }

  // The terms of the channel sums go to a buffer first: summed plane by plane they would break the loop over elements.
  LRP_ALWAYS_INLINE void short_planes(int64_t offset, int64_t count, int64_t channel) const {
    acc_t expanded[kBlock];
    acc_t terms[kBlock];
    expand_scales(this->tasks, this->scale, channel, count, expanded);
    if constexpr (kSum)
      for (int64_t i = 0; i < count; ++i) terms[i] = 0;
    block(offset, count, expanded, terms);
    if constexpr (kSum) {
      const int64_t span = this->tasks.span;
      for (int64_t begin = 0; begin < count; begin += span) {
        acc_t total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = begin; i < begin + span; ++i) total += terms[i];
        this->partial[(offset + begin) / span] = total;
      }
    }
  }

  // scales: of the first element (kPlane, or null), of every element otherwise; sums likewise.
  LRP_ALWAYS_INLINE void block(int64_t offset, int64_t count, const acc_t* __restrict scales,
                               sum_t* __restrict sums) const {
    constexpr bool kVector = kKind != Span::kPlane;
    this->epsilon.for_each_part(offset, count, [&](int64_t begin, int64_t size, acc_t epsilon) LRP_INLINE {
      const acc_t* k = kVector ? scales + begin : scales;
      sum_t* to = kSum && kVector ? sums + begin : sums;
      if (this->extent.targets == 1)
        one_target(offset + begin, size, k, to, epsilon);
      else
        many_targets(offset + begin, size, k, to, epsilon);
    });
  }

  LRP_ALWAYS_INLINE void one_target(int64_t offset, int64_t count, const acc_t* __restrict scales,
                                    sum_t* __restrict sums, const acc_t epsilon) const {
    constexpr bool kVector = kKind != Span::kPlane;
    const scalar_t* __restrict t = this->grad + offset;
    const scalar_t* __restrict g = this->multiplier + offset;
    const scalar_t* __restrict g2 = kAddend ? this->addend + offset : nullptr;
    const scalar_t* __restrict u = kOutput ? this->output + offset : nullptr;
    scalar_t* __restrict dg = this->result + offset;
    scalar_t* __restrict du = kOutput ? this->grad_output + offset : nullptr;
    const acc_t constant = !kVector && scales != nullptr ? scales[0] : acc_t(1);
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) {
      const acc_t k = kVector ? scales[i] : constant;
      const acc_t value = kOutput ? load(u[i]) : acc_t(1);
      const acc_t ratio = kOutput ? relu_ratio<acc_t>(value, epsilon) : acc_t(1);
      const acc_t incoming = load(t[i]);
      store(dg[i], incoming * ratio * k);
      if constexpr (kOutput || kSum) {
        const acc_t product = incoming * (kAddend ? load(g[i]) + load(g2[i]) : load(g[i]));
        if constexpr (kOutput) store(du[i], product * k * relu_ratio_derivative<acc_t>(value, epsilon));
        if constexpr (kSum && kVector) sums[i] += product * ratio;
        if constexpr (kSum && !kVector) total += product * ratio;
      }
    }
    if constexpr (kSum && !kVector) *sums += total;
  }

  LRP_ALWAYS_INLINE void many_targets(int64_t offset, int64_t count, const acc_t* __restrict scales,
                                      sum_t* __restrict sums, const acc_t epsilon) const {
    constexpr bool kVector = kKind != Span::kPlane;
    const scalar_t* __restrict u = kOutput ? this->output + offset : nullptr;
    const acc_t constant = !kVector && scales != nullptr ? scales[0] : acc_t(1);
    acc_t products[kBlock];  // sum over the targets of grad * (G + G2)
    for (int64_t i = 0; i < count; ++i) products[i] = acc_t(0);
    for (int64_t target = 0; target < this->extent.targets; ++target) {
      const int64_t at = target * this->extent.numel + offset;
      const scalar_t* __restrict t = this->grad + at;
      const scalar_t* __restrict g = this->multiplier + at;
      const scalar_t* __restrict g2 = kAddend ? this->addend + at : nullptr;
      scalar_t* __restrict dg = this->result + at;
      for (int64_t i = 0; i < count; ++i) {
        const acc_t ratio = kOutput ? relu_ratio<acc_t>(load(u[i]), epsilon) : acc_t(1);
        const acc_t incoming = load(t[i]);
        store(dg[i], incoming * ratio * (kVector ? scales[i] : constant));
        if constexpr (kOutput || kSum) products[i] += incoming * (kAddend ? load(g[i]) + load(g2[i]) : load(g[i]));
      }
    }
    if constexpr (kOutput || kSum) {
      scalar_t* __restrict du = kOutput ? this->grad_output + offset : nullptr;
      double total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < count; ++i) {
        const acc_t value = kOutput ? load(u[i]) : acc_t(1);
        const acc_t ratio = kOutput ? relu_ratio<acc_t>(value, epsilon) : acc_t(1);
        if constexpr (kOutput)
          store(du[i], products[i] * (kVector ? scales[i] : constant) * relu_ratio_derivative<acc_t>(value, epsilon));
        if constexpr (kSum && kVector) sums[i] += products[i] * ratio;
        if constexpr (kSum && !kVector) total += products[i] * ratio;
      }
      if constexpr (kSum && !kVector) *sums += total;
    }
  }
};

// Likewise.
template <typename scalar_t>
struct Ratio {
  using acc_t = arithmetic_t<scalar_t>;
  LrpExtent extent;
  Partition tasks;
  Stabilizer<acc_t> epsilon;
  const scalar_t* multiplier;   // [T, numel]
  const scalar_t* value;        // [numel]
  const scalar_t* denominator;  // [numel]
  scalar_t* result;             // [T, numel]: s, or the gradient of multiplier
  const scalar_t* grad;         // [T, numel]
  scalar_t* grad_value;         // [numel]
  scalar_t* grad_denominator;   // [numel]
};

template <typename scalar_t>
struct RatioForwardBody : Ratio<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    for_each_span<Span::kPlane>(
        this->tasks, first, last, [this](int64_t offset, int64_t count, int64_t, int64_t) LRP_INLINE {
          this->epsilon.for_each_part(offset, count, [&](int64_t begin, int64_t size, acc_t epsilon) LRP_INLINE {
            all_targets(offset + begin, size, epsilon);
          });
        });
  }

  LRP_ALWAYS_INLINE void all_targets(int64_t offset, int64_t count, const acc_t epsilon) const {
    for (int64_t target = 0; target < this->extent.targets; ++target) {
      const int64_t at = target * this->extent.numel + offset;
      const scalar_t* __restrict g = this->multiplier + at;
      const scalar_t* __restrict v = this->value + offset;
      const scalar_t* __restrict d = this->denominator + offset;
      scalar_t* __restrict s = this->result + at;
      for (int64_t i = 0; i < count; ++i) store(s[i], load(g[i]) * load(v[i]) / stabilize<acc_t>(load(d[i]), epsilon));
    }
  }
};

template <typename scalar_t>
struct RatioBackwardBody : Ratio<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    for_each_block<Span::kPlane>(
        this->tasks, first, last, [this](int64_t offset, int64_t count, int64_t, int64_t, int64_t) LRP_INLINE {
          this->epsilon.for_each_part(offset, count, [&](int64_t begin, int64_t size, acc_t epsilon) LRP_INLINE {
            block(offset + begin, size, epsilon);
          });
        });
  }

  LRP_ALWAYS_INLINE void block(int64_t offset, int64_t count, const acc_t epsilon) const {
    const scalar_t* __restrict v = this->value + offset;
    const scalar_t* __restrict d = this->denominator + offset;
    acc_t products[kBlock];  // sum over the targets of grad * G
    for (int64_t i = 0; i < count; ++i) products[i] = acc_t(0);
    for (int64_t target = 0; target < this->extent.targets; ++target) {
      const int64_t at = target * this->extent.numel + offset;
      const scalar_t* __restrict t = this->grad + at;
      const scalar_t* __restrict g = this->multiplier + at;
      scalar_t* __restrict dg = this->result + at;
      for (int64_t i = 0; i < count; ++i) {
        const acc_t incoming = load(t[i]);
        store(dg[i], incoming * load(v[i]) / stabilize<acc_t>(load(d[i]), epsilon));
        products[i] += incoming * load(g[i]);
      }
    }
    scalar_t* __restrict dv = this->grad_value + offset;
    scalar_t* __restrict dd = this->grad_denominator + offset;
    for (int64_t i = 0; i < count; ++i) {
      const acc_t denominator = stabilize<acc_t>(load(d[i]), epsilon);
      const acc_t share = products[i] / denominator;
      store(dv[i], share);
      store(dd[i], -share * load(v[i]) / denominator);
    }
  }
};

struct Backend : CpuBackend {
  static void epsilon_scale(LrpDtype dtype, In multiplier, In addend, In output, In scale, Out result, LrpExtent extent,
                            const LrpEpsilon& epsilon, void*) {
    const Partition tasks = partition(extent, scale.address != nullptr);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const Stabilizer<arithmetic_t<scalar_t>> eps(epsilon);
      const EpsilonScale<scalar_t> args{extent, tasks, eps, multiplier, addend, output, scale, result};
      with_flag(addend.address != nullptr, [&](auto has_addend) {
        with_flag(output.address != nullptr, [&](auto has_output) {
          with_span(tasks.kind, [&](auto kind) {
            run_parallel(tasks, ForwardBody<scalar_t, has_addend(), has_output(), kind()>{args});
          });
        });
      });
    });
  }

  static int64_t epsilon_scale_backward_workspace(LrpDtype, LrpExtent extent) {
    return partition(extent, true).partial_sums() * static_cast<int64_t>(sizeof(double));
  }

  static void epsilon_scale_backward(LrpDtype dtype, In grad, In multiplier, In addend, In output, In scale,
                                     Out grad_multiplier, Out grad_output, Out grad_scale, Out workspace,
                                     LrpExtent extent, const LrpEpsilon& epsilon, void*) {
    const Partition tasks = partition(extent, scale.address != nullptr);
    const bool sums = grad_scale.address != nullptr;
    if (sums) std::memset(workspace, 0, epsilon_scale_backward_workspace(dtype, extent));
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const Stabilizer<arithmetic_t<scalar_t>> eps(epsilon);
      const EpsilonScale<scalar_t> args{extent, tasks,           eps,  multiplier,  addend,   output,
                                        scale,  grad_multiplier, grad, grad_output, workspace};
      with_flag(addend.address != nullptr, [&](auto has_addend) {
        with_flag(output.address != nullptr, [&](auto has_output) {
          with_span(tasks.kind, [&](auto kind) {
            with_flag(sums, [&](auto sum) {
              run_parallel(tasks, BackwardBody<scalar_t, has_addend(), has_output(), kind(), sum()>{args});
            });
          });
        });
      });
      if (sums) channel_totals<arithmetic_t<scalar_t>>(tasks, args.partial, grad_scale);
    });
  }

  static void ratio(LrpDtype dtype, In multiplier, In value, In denominator, Out result, LrpExtent extent,
                    const LrpEpsilon& epsilon, void*) {
    const Partition tasks = partition(extent, false);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const Stabilizer<arithmetic_t<scalar_t>> eps(epsilon);
      const Ratio<scalar_t> args{extent, tasks, eps, multiplier, value, denominator, result};
      run_parallel(tasks, RatioForwardBody<scalar_t>{args});
    });
  }

  static void ratio_backward(LrpDtype dtype, In grad, In multiplier, In value, In denominator, Out grad_multiplier,
                             Out grad_value, Out grad_denominator, LrpExtent extent, const LrpEpsilon& epsilon, void*) {
    const Partition tasks = partition(extent, false);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const Stabilizer<arithmetic_t<scalar_t>> eps(epsilon);
      const Ratio<scalar_t> args{extent,      tasks,           eps,  multiplier, value,
                                 denominator, grad_multiplier, grad, grad_value, grad_denominator};
      run_parallel(tasks, RatioBackwardBody<scalar_t>{args});
    });
  }
};

using Ops = PointwiseOps<Backend>;

}  // namespace
}  // namespace lrpkernels::cpu

STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CPU, m) {
  using lrpkernels::cpu::Ops;
  m.impl("epsilon_scale", TORCH_BOX(&Ops::epsilon_scale));
  m.impl("epsilon_scale_backward", TORCH_BOX(&Ops::epsilon_scale_backward));
  m.impl("ratio", TORCH_BOX(&Ops::ratio));
  m.impl("ratio_backward", TORCH_BOX(&Ops::ratio_backward));
}

// CPU kernels of layers without a matrix product: batch norm standing alone, and sums under the z+ rule. One pass over
// memory, parallel over fixed tasks.
#include "../common/affine_ops.h"

#include <torch/csrc/stable/library.h>

#include "../common/rule_math.h"
#include "partition.h"

namespace lrpkernels::cpu {
namespace {

// The kernels' arguments, typed. The last ones are those of the backward kernels.
template <typename scalar_t>
struct Sum {
  using acc_t = arithmetic_t<scalar_t>;
  LrpExtent extent;
  Partition tasks;
  acc_t epsilon;
  const scalar_t* multiplier;  // [T, numel]
  const scalar_t* a;           // [numel]
  const scalar_t* b;           // [numel]
  scalar_t* result_a;          // [T, numel]: for a, or the gradient of multiplier
  scalar_t* result_b;          // [T, numel]
  const scalar_t* grad_a;      // [T, numel]
  const scalar_t* grad_b;      // [T, numel]
  scalar_t* grad_input_a;      // [numel]
  scalar_t* grad_input_b;      // [numel]
};

// s = G t / (a+ + b+ + eps), passed to the summands that are not negative.
template <typename scalar_t>
struct SumForward : Sum<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    for_each_span<Span::kPlane>(
        this->tasks, first, last, [this](int64_t offset, int64_t count, int64_t, int64_t) LRP_INLINE {
          const scalar_t* __restrict a = this->a + offset;
          const scalar_t* __restrict b = this->b + offset;
          const acc_t epsilon = this->epsilon;
          for (int64_t target = 0; target < this->extent.targets; ++target) {
            const int64_t at = target * this->extent.numel + offset;
            const scalar_t* __restrict g = this->multiplier + at;
            scalar_t* __restrict to_a = this->result_a + at;
            scalar_t* __restrict to_b = this->result_b + at;
            for (int64_t i = 0; i < count; ++i) {
              const acc_t x = load(a[i]), y = load(b[i]);
              const acc_t s = load(g[i]) * (x + y) / stabilize(positive_part(x) + positive_part(y), epsilon);
              store(to_a[i], unless_negative(x, s));
              store(to_b[i], unless_negative(y, s));
            }
          }
        });
  }
};

// With t = ta [a >= 0] + tb [b >= 0], D = a+ + b+ + eps: dG = t (a + b) / D, P = sum_T t G,
// da = P / D - P (a + b) / D^2 [a > 0], db likewise.
template <typename scalar_t>
struct SumBackward : Sum<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    for_each_block<Span::kPlane>(this->tasks, first, last,
                                 [this](int64_t offset, int64_t count, int64_t, int64_t, int64_t)
                                     LRP_INLINE { block(offset, count); });
  }

  LRP_ALWAYS_INLINE void block(int64_t offset, int64_t count) const {
    const scalar_t* __restrict a = this->a + offset;
    const scalar_t* __restrict b = this->b + offset;
    const acc_t epsilon = this->epsilon;
    acc_t products[kBlock];  // sum over the targets of t * G
    for (int64_t i = 0; i < count; ++i) products[i] = acc_t(0);
    for (int64_t target = 0; target < this->extent.targets; ++target) {
      const int64_t at = target * this->extent.numel + offset;
      const scalar_t* __restrict ta = this->grad_a + at;
      const scalar_t* __restrict tb = this->grad_b + at;
      const scalar_t* __restrict g = this->multiplier + at;
      scalar_t* __restrict dg = this->result_a + at;
      for (int64_t i = 0; i < count; ++i) {
        const acc_t x = load(a[i]), y = load(b[i]);
        const acc_t t = unless_negative<acc_t>(x, load(ta[i])) + unless_negative<acc_t>(y, load(tb[i]));
        products[i] += t * load(g[i]);
        store(dg[i], t * (x + y) / stabilize(positive_part(x) + positive_part(y), epsilon));
      }
    }
    scalar_t* __restrict da = this->grad_input_a + offset;
    scalar_t* __restrict db = this->grad_input_b + offset;
    for (int64_t i = 0; i < count; ++i) {
      const acc_t x = load(a[i]), y = load(b[i]);
      const acc_t denominator = stabilize(positive_part(x) + positive_part(y), epsilon);
      const acc_t share = products[i] / denominator, drop = share * (x + y) / denominator;
      store(da[i], share - (x > acc_t(0) ? drop : acc_t(0)));
      store(db[i], share - (y > acc_t(0) ? drop : acc_t(0)));
    }
  }
};

template <typename scalar_t>
struct Affine {
  using acc_t = arithmetic_t<scalar_t>;
  LrpExtent extent;
  Partition tasks;
  Favour<acc_t> favour;
  acc_t epsilon;
  const scalar_t* multiplier;  // [T, numel]
  const scalar_t* value;       // [numel]
  const scalar_t* input;       // [numel]
  const acc_t* slope;          // [C]
  const acc_t* shift;          // [C] or null
  scalar_t* result;            // [T, numel]: G at the input, or the gradient of multiplier
  const scalar_t* grad;        // [T, numel]
  scalar_t* grad_value;        // [numel]
  scalar_t* grad_input;        // [numel]
  double* partial_slope;       // [Partition::partial_sums()]
  double* partial_shift;       // likewise
};

// Slope and shift of each element of a block.
template <typename scalar_t, Span kKind>
struct BlockChannels {
  using acc_t = arithmetic_t<scalar_t>;
  acc_t slope[kBlock];
  acc_t shift[kBlock];

  // From element `skip` of a span (a pixel's channel) that begins with `channel`.
  LRP_ALWAYS_INLINE void fill(const Affine<scalar_t>& args, int64_t channel, int64_t skip, int64_t count) {
    const acc_t* const given[] = {args.slope, args.shift};
    acc_t* const filled[] = {slope, shift};
    for (int which = 0; which < 2; ++which) {
      acc_t* __restrict to = filled[which];
      const acc_t* __restrict from = given[which];
      if (from == nullptr) {
        for (int64_t i = 0; i < count; ++i) to[i] = acc_t(0);
      } else if constexpr (kKind == Span::kShortPlanes) {
        expand_scales(args.tasks, from, channel, count, to);
      } else if constexpr (kKind == Span::kPixel) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[skip + i];
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[channel];
      }
    }
  }
};

template <typename scalar_t, Span kKind>
struct AffineForward : Affine<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    BlockChannels<scalar_t, kKind> channels;
    for_each_block<kKind>(this->tasks, first, last,
                          [&](int64_t offset, int64_t count, int64_t channel, int64_t skip, int64_t) LRP_INLINE {
                            channels.fill(*this, channel, skip, count);
                            const scalar_t* __restrict v = this->value + offset;
                            const scalar_t* __restrict x = this->input + offset;
                            const acc_t* __restrict k = channels.slope;
                            const acc_t* __restrict c = channels.shift;
                            const acc_t epsilon = this->epsilon;
                            acc_t factors[kBlock];
                            for (int64_t i = 0; i < count; ++i) {
                              const AffineShare<acc_t> share(this->favour, load(x[i]), k[i], c[i], epsilon);
                              factors[i] = load(v[i]) * share.factor / share.denominator;
                            }
                            for (int64_t target = 0; target < this->extent.targets; ++target) {
                              const int64_t at = target * this->extent.numel + offset;
                              const scalar_t* __restrict g = this->multiplier + at;
                              scalar_t* __restrict s = this->result + at;
                              for (int64_t i = 0; i < count; ++i) store(s[i], load(g[i]) * factors[i]);
                            }
                          });
  }
};

template <typename scalar_t, Span kKind>
struct AffineBackward : Affine<scalar_t> {
  using acc_t = arithmetic_t<scalar_t>;

  LRP_ALWAYS_INLINE void operator()(int64_t first, int64_t last) const {
    BlockChannels<scalar_t, kKind> channels;
    for_each_block<kKind>(this->tasks, first, last,
                          [&](int64_t offset, int64_t count, int64_t channel, int64_t skip, int64_t task) LRP_INLINE {
                            channels.fill(*this, channel, skip, count);
                            acc_t slopes[kBlock], shifts[kBlock];  // the elements' terms of the channel sums
                            block(offset, count, channels.slope, channels.shift, slopes, shifts);
                            add(this->partial_slope, slopes, offset, count, skip, task);
                            add(this->partial_shift, shifts, offset, count, skip, task);
                          });
  }

  LRP_ALWAYS_INLINE void block(int64_t offset, int64_t count, const acc_t* __restrict k, const acc_t* __restrict c,
                               acc_t* __restrict slopes, acc_t* __restrict shifts) const {
    const scalar_t* __restrict v = this->value + offset;
    const scalar_t* __restrict x = this->input + offset;
    const acc_t epsilon = this->epsilon;
    acc_t factors[kBlock], products[kBlock];
    for (int64_t i = 0; i < count; ++i) {
      const AffineShare<acc_t> share(this->favour, load(x[i]), k[i], c[i], epsilon);
      factors[i] = load(v[i]) * share.factor / share.denominator;
      products[i] = acc_t(0);
    }
    for (int64_t target = 0; target < this->extent.targets; ++target) {
      const int64_t at = target * this->extent.numel + offset;
      const scalar_t* __restrict t = this->grad + at;
      const scalar_t* __restrict g = this->multiplier + at;
      scalar_t* __restrict dg = this->result + at;
      for (int64_t i = 0; i < count; ++i) {
        products[i] += load(t[i]) * load(g[i]);
        store(dg[i], load(t[i]) * factors[i]);
      }
    }
    scalar_t* __restrict dv = this->grad_value + offset;
    scalar_t* __restrict dx = this->grad_input + offset;
    for (int64_t i = 0; i < count; ++i) {
      const AffineGradient<acc_t> d(this->favour, products[i], load(v[i]), load(x[i]), k[i], c[i], epsilon);
      store(dv[i], d.value);
      store(dx[i], d.input);
      slopes[i] = d.slope;
      shifts[i] = d.shift;
    }
  }

  // Adds a block's terms to the partial sums of its channel (or channels).
  LRP_ALWAYS_INLINE void add(double* partial, const acc_t* __restrict terms, int64_t offset, int64_t count,
                             int64_t skip, int64_t task) const {
    if constexpr (kKind == Span::kPixel) {
      double* __restrict sums = partial + task * this->tasks.channels + skip;
      for (int64_t i = 0; i < count; ++i) sums[i] += terms[i];
    } else {
      const int64_t span = kKind == Span::kShortPlanes ? this->tasks.span : count;
      for (int64_t begin = 0; begin < count; begin += span) {
        double total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t i = begin; i < begin + span; ++i) total += terms[i];
        partial[kKind == Span::kShortPlanes ? (offset + begin) / span : task] += total;
      }
    }
  }
};

struct Backend : CpuBackend {
  static void sum_zplus(LrpDtype dtype, In multiplier, In a, In b, Out result_a, Out result_b, LrpExtent extent,
                        double epsilon, void*) {
    const Partition tasks = partition(extent, false);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const auto eps = static_cast<arithmetic_t<scalar_t>>(epsilon);
      const Sum<scalar_t> args{extent, tasks, eps, multiplier, a, b, result_a, result_b};
      run_parallel(tasks, SumForward<scalar_t>{args});
    });
  }

  static void sum_zplus_backward(LrpDtype dtype, In grad_a, In grad_b, In multiplier, In a, In b, Out grad_multiplier,
                                 Out grad_input_a, Out grad_input_b, LrpExtent extent, double epsilon, void*) {
    const Partition tasks = partition(extent, false);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      const auto eps = static_cast<arithmetic_t<scalar_t>>(epsilon);
      const Sum<scalar_t> args{extent,  tasks,  eps,    multiplier,   a,           b, grad_multiplier,
                               nullptr, grad_a, grad_b, grad_input_a, grad_input_b};
      run_parallel(tasks, SumBackward<scalar_t>{args});
    });
  }

  static void affine(LrpDtype dtype, double whole, double positive, In multiplier, In value, In input, In slope,
                     In shift, Out result, LrpExtent extent, double epsilon, void*) {
    const Partition tasks = partition(extent, true);
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      using acc_t = arithmetic_t<scalar_t>;
      const Favour<acc_t> favour{static_cast<acc_t>(whole), static_cast<acc_t>(positive)};
      const auto eps = static_cast<acc_t>(epsilon);
      const Affine<scalar_t> args{extent, tasks, favour, eps, multiplier, value, input, slope, shift, result};
      with_span(tasks.kind, [&](auto kind) { run_parallel(tasks, AffineForward<scalar_t, kind()>{args}); });
    });
  }

  static int64_t affine_backward_workspace(LrpDtype, LrpExtent extent) {
    return 2 * partition(extent, true).partial_sums() * static_cast<int64_t>(sizeof(double));
  }

  static void affine_backward(LrpDtype dtype, double whole, double positive, In grad, In multiplier, In value, In input,
                              In slope, In shift, Out grad_multiplier, Out grad_value, Out grad_input, Out grad_slope,
                              Out grad_shift, Out workspace, LrpExtent extent, double epsilon, void*) {
    std::memset(workspace, 0, affine_backward_workspace(dtype, extent));
    const Partition tasks = partition(extent, true);
    double* const slopes = workspace;
    double* const shifts = slopes + tasks.partial_sums();
    with_storage(dtype, [&](auto storage) {
      using scalar_t = decltype(storage);
      using acc_t = arithmetic_t<scalar_t>;
      const Favour<acc_t> favour{static_cast<acc_t>(whole), static_cast<acc_t>(positive)};
      const auto eps = static_cast<acc_t>(epsilon);
      const Affine<scalar_t> args{extent, tasks,           favour, eps,        multiplier, value,  input, slope,
                                  shift,  grad_multiplier, grad,   grad_value, grad_input, slopes, shifts};
      with_span(tasks.kind, [&](auto kind) { run_parallel(tasks, AffineBackward<scalar_t, kind()>{args}); });
      channel_totals<acc_t>(tasks, slopes, grad_slope);
      channel_totals<acc_t>(tasks, shifts, grad_shift);
    });
  }
};

using Ops = AffineOps<Backend>;

}  // namespace
}  // namespace lrpkernels::cpu

STABLE_TORCH_LIBRARY_IMPL(lrpkernels, CPU, m) {
  using lrpkernels::cpu::Ops;
  m.impl("affine", TORCH_BOX(&Ops::affine));
  m.impl("affine_backward", TORCH_BOX(&Ops::affine_backward));
  m.impl("sum_zplus", TORCH_BOX(&Ops::sum_zplus));
  m.impl("sum_zplus_backward", TORCH_BOX(&Ops::sum_zplus_backward));
}

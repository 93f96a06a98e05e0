// Layers without a matrix product under the rules: sums (z+), and batch norm standing alone (epsilon, z+, gamma).
#include "../common/rule_math.h"
#include "channel_sum.cuh"

namespace lrpkernels::cuda {
namespace {

// s = G t / (a+ + b+ + eps), passed to the summands that are not negative.
template <typename storage_t>
struct SumZPlus {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* a;           // [numel]
  const scalar_t* b;           // [numel]
  scalar_t* result_a;          // [targets, numel]
  scalar_t* result_b;          // [targets, numel]
  LrpExtent extent;
  acc_t epsilon;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Pack<acc_t, kVec> x = load<kVec>(a + i), y = load<kVec>(b + i);
#pragma unroll 1  // unrolled, the vectors of several targets do not fit the registers
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> g = load<kVec>(multiplier + at), h;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const acc_t s = g[j] * (x[j] + y[j]) / stabilize(positive_part(x[j]) + positive_part(y[j]), epsilon);
        g[j] = unless_negative(x[j], s);
        h[j] = unless_negative(y[j], s);
      }
      store<kVec>(result_a + at, g);
      store<kVec>(result_b + at, h);
    }
  }
};

// With t = ta [a >= 0] + tb [b >= 0], D = a+ + b+ + eps: dG = t (a + b) / D, P = sum_T t G,
// da = P / D - P (a + b) / D^2 [a > 0], db likewise.
template <typename storage_t>
struct SumZPlusBackward {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* grad_a;      // [targets, numel]
  const scalar_t* grad_b;      // [targets, numel]
  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* a;           // [numel]
  const scalar_t* b;           // [numel]
  scalar_t* grad_multiplier;   // [targets, numel]
  scalar_t* grad_input_a;      // [numel]
  scalar_t* grad_input_b;      // [numel]
  LrpExtent extent;
  acc_t epsilon;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Pack<acc_t, kVec> x = load<kVec>(a + i), y = load<kVec>(b + i);
    Pack<acc_t, kVec> products = filled<kVec>(acc_t(0));
#pragma unroll 1
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> t = load<kVec>(grad_a + at);
      const Pack<acc_t, kVec> tb = load<kVec>(grad_b + at), g = load<kVec>(multiplier + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        t[j] = unless_negative(x[j], t[j]) + unless_negative(y[j], tb[j]);
        products[j] += t[j] * g[j];
        t[j] *= (x[j] + y[j]) / stabilize(positive_part(x[j]) + positive_part(y[j]), epsilon);
      }
      store<kVec>(grad_multiplier + at, t);
    }
    Pack<acc_t, kVec> da, db;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const acc_t denominator = stabilize(positive_part(x[j]) + positive_part(y[j]), epsilon);
      const acc_t share = products[j] / denominator, drop = share * (x[j] + y[j]) / denominator;
      da[j] = share - (x[j] > acc_t(0) ? drop : acc_t(0));
      db[j] = share - (y[j] > acc_t(0) ? drop : acc_t(0));
    }
    store<kVec>(grad_input_a + i, da);
    store<kVec>(grad_input_b + i, db);
  }
};

template <typename storage_t>
struct Affine {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* value;       // [numel]
  const scalar_t* input;       // [numel]
  const acc_t* slope;          // [channels]
  const acc_t* shift;          // [channels] or null
  scalar_t* result;            // [targets, numel]
  LrpExtent extent;
  ChannelMap channels;
  Favour<acc_t> favour;
  acc_t epsilon;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    const Pack<acc_t, kVec> k = channels.template gather<kVec>(slope, i), x = load<kVec>(input + i);
    const Pack<acc_t, kVec> c = shift ? channels.template gather<kVec>(shift, i) : filled<kVec>(acc_t(0));
    Pack<acc_t, kVec> factor = load<kVec>(value + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const AffineShare<acc_t> share(favour, x[j], k[j], c[j], epsilon);
      factor[j] *= share.factor / share.denominator;
    }
#pragma unroll 1
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> g = load<kVec>(multiplier + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) g[j] *= factor[j];
      store<kVec>(result + at, g);
    }
  }
};

// dG = t v f / D with AffineShare's factor and denominator; the other gradients are AffineGradient's.
template <typename storage_t>
struct AffineBackward {
  static constexpr int kSums = 2;  // dk, dc
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* grad;        // [targets, numel]
  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* value;       // [numel]
  const scalar_t* input;       // [numel]
  const acc_t* slope;          // [channels]
  const acc_t* shift;          // [channels] or null
  scalar_t* grad_multiplier;   // [targets, numel]
  scalar_t* grad_value;        // [numel]
  scalar_t* grad_input;        // [numel]
  LrpExtent extent;
  ChannelMap channels;
  Favour<acc_t> favour;
  acc_t epsilon;

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kSums * kVec> run(int64_t i) const {
    const Pack<acc_t, kVec> k = channels.template gather<kVec>(slope, i), x = load<kVec>(input + i);
    const Pack<acc_t, kVec> c = shift ? channels.template gather<kVec>(shift, i) : filled<kVec>(acc_t(0));
    const Pack<acc_t, kVec> v = load<kVec>(value + i);
    Pack<acc_t, kVec> products = filled<kVec>(acc_t(0));
#pragma unroll 1
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> t = load<kVec>(grad + at);
      const Pack<acc_t, kVec> g = load<kVec>(multiplier + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const AffineShare<acc_t> share(favour, x[j], k[j], c[j], epsilon);
        products[j] += t[j] * g[j];
        t[j] *= v[j] * (share.factor / share.denominator);
      }
      store<kVec>(grad_multiplier + at, t);
    }
    Pack<acc_t, kVec> dv, dx;
    Pack<acc_t, kSums * kVec> sums;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const AffineGradient<acc_t> d(favour, products[j], v[j], x[j], k[j], c[j], epsilon);
      dv[j] = d.value;
      dx[j] = d.input;
      sums[j] = d.slope;
      sums[kVec + j] = d.shift;
    }
    store<kVec>(grad_value + i, dv);
    store<kVec>(grad_input + i, dx);
    return sums;
  }
};

}  // namespace

extern "C" {  // the launchers of launchers.h

int lrp_sum_zplus(LrpDtype dtype, const void* multiplier, const void* a, const void* b, void* result_a, void* result_b,
                  LrpExtent extent, double epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    const auto eps = static_cast<arithmetic_t<scalar_t>>(epsilon);
    const SumZPlus<scalar_t> body{In{multiplier}, In{a}, In{b}, Out{result_a}, Out{result_b}, extent, eps};
    return launch_elementwise(body, extent.numel, vectorizable<scalar_t>(extent, multiplier, a, b, result_a, result_b),
                              stream);
  });
}

int lrp_sum_zplus_backward(LrpDtype dtype, const void* grad_a, const void* grad_b, const void* multiplier,
                           const void* a, const void* b, void* grad_multiplier, void* grad_input_a, void* grad_input_b,
                           LrpExtent extent, double epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    const auto eps = static_cast<arithmetic_t<scalar_t>>(epsilon);
    const SumZPlusBackward<scalar_t> body{In{grad_a},           In{grad_b},        In{multiplier},    In{a},  In{b},
                                          Out{grad_multiplier}, Out{grad_input_a}, Out{grad_input_b}, extent, eps};
    const bool vectors =
        vectorizable<scalar_t>(extent, grad_a, grad_b, multiplier, a, b, grad_multiplier, grad_input_a, grad_input_b);
    return launch_elementwise(body, extent.numel, vectors, stream);
  });
}

int lrp_affine(LrpDtype dtype, double whole, double positive, const void* multiplier, const void* value,
               const void* input, const void* slope, const void* shift, void* result, LrpExtent extent, double epsilon,
               void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    const ChannelMap channels(extent);
    const Favour<acc_t> favour{static_cast<acc_t>(whole), static_cast<acc_t>(positive)};
    const auto eps = static_cast<acc_t>(epsilon);
    const Affine<scalar_t> body{In{multiplier}, In{value}, In{input}, In{slope}, In{shift},
                                Out{result},    extent,    channels,  favour,    eps};
    return launch_elementwise(body, extent.numel, vectorizable<scalar_t>(extent, multiplier, value, input, result),
                              stream);
  });
}

int64_t lrp_affine_backward_workspace(LrpDtype dtype, LrpExtent extent) {
  return channel_sum_workspace(dtype, extent, 2);
}

int lrp_affine_backward(LrpDtype dtype, double whole, double positive, const void* grad, const void* multiplier,
                        const void* value, const void* input, const void* slope, const void* shift,
                        void* grad_multiplier, void* grad_value, void* grad_input, void* grad_slope, void* grad_shift,
                        void* workspace, LrpExtent extent, double epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    const ChannelMap channels(extent);
    const Favour<acc_t> favour{static_cast<acc_t>(whole), static_cast<acc_t>(positive)};
    const auto eps = static_cast<acc_t>(epsilon);
    const AffineBackward<scalar_t> body{
        In{grad},        In{multiplier},  In{value}, In{input}, In{slope}, In{shift}, Out{grad_multiplier},
        Out{grad_value}, Out{grad_input}, extent,    channels,  favour,    eps};
    const bool vectors =
        vectorizable<scalar_t>(extent, grad, multiplier, value, input, grad_multiplier, grad_value, grad_input);
    return launch_channel_sum(body, extent, vectors, workspace, {grad_slope, grad_shift}, stream);
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

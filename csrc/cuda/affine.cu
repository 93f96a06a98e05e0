// Layers without a matrix product under the rules: sums (z+), and batch norm standing alone (epsilon, z+, gamma).
#include "../common/rule_math.h"
#include "channel_sum.cuh"

namespace lrpkernels::cuda {
namespace {

// s = G t / (a+ + b+ + eps), handed to the summands that are not negative.
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

template <typename scalar_t>
constexpr int kResidentBlocks<WithoutSum<AffineBackward<scalar_t>>> = kSumBlocksPerSm;

extern "C" {  // the launchers of launchers.h

int lrp_sum_zplus(LrpDtype dtype, const void* multiplier, const void* a, const void* b, void* result_a, void* result_b,
                  LrpExtent extent, double epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    const SumZPlus<scalar_t> body{static_cast<const scalar_t*>(multiplier),
                                  static_cast<const scalar_t*>(a),
                                  static_cast<const scalar_t*>(b),
                                  static_cast<scalar_t*>(result_a),
                                  static_cast<scalar_t*>(result_b),
                                  extent,
                                  static_cast<arithmetic_t<scalar_t>>(epsilon)};
    return launch_elementwise(body, extent.numel, vectorizable<scalar_t>(extent, multiplier, a, b, result_a, result_b),
                              stream);
  });
}

int lrp_sum_zplus_backward(LrpDtype dtype, const void* grad_a, const void* grad_b, const void* multiplier,
                           const void* a, const void* b, void* grad_multiplier, void* grad_input_a, void* grad_input_b,
                           LrpExtent extent, double epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    const SumZPlusBackward<scalar_t> body{static_cast<const scalar_t*>(grad_a),
                                          static_cast<const scalar_t*>(grad_b),
                                          static_cast<const scalar_t*>(multiplier),
                                          static_cast<const scalar_t*>(a),
                                          static_cast<const scalar_t*>(b),
                                          static_cast<scalar_t*>(grad_multiplier),
                                          static_cast<scalar_t*>(grad_input_a),
                                          static_cast<scalar_t*>(grad_input_b),
                                          extent,
                                          static_cast<arithmetic_t<scalar_t>>(epsilon)};
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
    const Affine<scalar_t> body{static_cast<const scalar_t*>(multiplier),
                                static_cast<const scalar_t*>(value),
                                static_cast<const scalar_t*>(input),
                                static_cast<const acc_t*>(slope),
                                static_cast<const acc_t*>(shift),
                                static_cast<scalar_t*>(result),
                                extent,
                                ChannelMap(extent),
                                {static_cast<acc_t>(whole), static_cast<acc_t>(positive)},
                                static_cast<acc_t>(epsilon)};
    return launch_elementwise(body, extent.numel, vectorizable<scalar_t>(extent, multiplier, value, input, result),
                              stream);
  });
}

int64_t lrp_affine_backward_workspace(LrpDtype dtype, LrpExtent extent) {
  switch (dtype) {
    case kFloat32:
      return channel_sum_workspace<float>(extent, 2);
    case kFloat64:
      return channel_sum_workspace<double>(extent, 2);
    default:
      return channel_sum_workspace<__half>(extent, 2);
  }
}

int lrp_affine_backward(LrpDtype dtype, double whole, double positive, const void* grad, const void* multiplier,
                        const void* value, const void* input, const void* slope, const void* shift,
                        void* grad_multiplier, void* grad_value, void* grad_input, void* grad_slope, void* grad_shift,
                        void* workspace, LrpExtent extent, double epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    const AffineBackward<scalar_t> body{static_cast<const scalar_t*>(grad),
                                        static_cast<const scalar_t*>(multiplier),
                                        static_cast<const scalar_t*>(value),
                                        static_cast<const scalar_t*>(input),
                                        static_cast<const acc_t*>(slope),
                                        static_cast<const acc_t*>(shift),
                                        static_cast<scalar_t*>(grad_multiplier),
                                        static_cast<scalar_t*>(grad_value),
                                        static_cast<scalar_t*>(grad_input),
                                        extent,
                                        ChannelMap(extent),
                                        {static_cast<acc_t>(whole), static_cast<acc_t>(positive)},
                                        static_cast<acc_t>(epsilon)};
    const bool vectors =
        vectorizable<scalar_t>(extent, grad, multiplier, value, input, grad_multiplier, grad_value, grad_input);
    if (grad_slope == nullptr)
      return launch_elementwise(WithoutSum<AffineBackward<scalar_t>>{body}, extent.numel, vectors, stream);
    return vectors
               ? launch_channel_sum<kVectorWidth<scalar_t>>(body, extent, workspace, {grad_slope, grad_shift}, stream)
               : launch_channel_sum<1>(body, extent, workspace, {grad_slope, grad_shift}, stream);
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

// Elementwise relevance ops: the epsilon rule's scale through [batch norm ->] ReLU, and the stabilised ratio.
#include "channel_sum.cuh"

namespace lrpkernels::cuda {
namespace {

// The stabilisers of the elements i .. i + kVec - 1: the same for all, or those of their images.
template <typename acc_t>
struct Uniform {
  acc_t epsilon;

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kVec> gather(int64_t) const {
    return filled<kVec>(epsilon);
  }
};

template <typename acc_t>
struct PerImage {
  const acc_t* epsilons;  // [batch]
  ChannelMap images;      // an image counts as a channel

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kVec> gather(int64_t i) const {
    return images.template gather<kVec>(epsilons, i);
  }
};

// s = (G + G2) * m(u) * k_c. addend, output, scale may be null.
template <typename storage_t, typename Stabilizer>
struct EpsilonScale {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* addend;      // [targets, numel]
  const scalar_t* output;      // [numel]
  const acc_t* scale;          // [channels]
  scalar_t* result;            // [targets, numel]
  LrpExtent extent;
  ChannelMap channels;
  Stabilizer epsilon;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    Pack<acc_t, kVec> factor = scale ? channels.template gather<kVec>(scale, i) : filled<kVec>(acc_t(1));
    if (output) {
      const Pack<acc_t, kVec> u = load<kVec>(output + i), eps = epsilon.template gather<kVec>(i);
#pragma unroll
      for (int j = 0; j < kVec; ++j) factor[j] *= relu_ratio(u[j], eps[j]);
    }
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> g = load<kVec>(multiplier + at);
      if (addend) {
        const Pack<acc_t, kVec> g2 = load<kVec>(addend + at);
#pragma unroll
        for (int j = 0; j < kVec; ++j) g[j] += g2[j];
      }
#pragma unroll
      for (int j = 0; j < kVec; ++j) g[j] *= factor[j];
      store<kVec>(result + at, g);
    }
  }
};

// dG = t m k, du = sum_T t (G + G2) k dm/du; the products summed to dk_c are sum_T t (G + G2) m.
template <typename storage_t, typename Stabilizer>
struct EpsilonScaleBackward {
  static constexpr int kSums = 1;
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* grad;        // [targets, numel]
  const scalar_t* multiplier;  // [targets, numel]
  const scalar_t* addend;      // [targets, numel] or null
  const scalar_t* output;      // [numel] or null
  const acc_t* scale;          // [channels] or null
  scalar_t* grad_multiplier;   // [targets, numel]
  scalar_t* grad_output;       // [numel], null without output
  LrpExtent extent;
  ChannelMap channels;
  Stabilizer epsilon;

  template <int kVec>
  __device__ __forceinline__ Pack<acc_t, kVec> run(int64_t i) const {
    const Pack<acc_t, kVec> k = scale ? channels.template gather<kVec>(scale, i) : filled<kVec>(acc_t(1));
    Pack<acc_t, kVec> u = filled<kVec>(acc_t(1)), m = u;
    if (output) {
      u = load<kVec>(output + i);
      const Pack<acc_t, kVec> eps = epsilon.template gather<kVec>(i);
#pragma unroll
      for (int j = 0; j < kVec; ++j) m[j] = relu_ratio(u[j], eps[j]);
    }
    Pack<acc_t, kVec> products = filled<kVec>(acc_t(0));  // sum_T t (G + G2)
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> t = load<kVec>(grad + at);
      const Pack<acc_t, kVec> g = load<kVec>(multiplier + at);
      const Pack<acc_t, kVec> g2 = addend ? load<kVec>(addend + at) : filled<kVec>(acc_t(0));
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        products[j] += t[j] * (g[j] + g2[j]);
        t[j] *= m[j] * k[j];
      }
      store<kVec>(grad_multiplier + at, t);
    }
    if (output) {
      // Read again: stabilisers kept over the targets' loop would cost a register each.
      const Pack<acc_t, kVec> eps = epsilon.template gather<kVec>(i);
      Pack<acc_t, kVec> du;
#pragma unroll
      for (int j = 0; j < kVec; ++j) du[j] = products[j] * k[j] * relu_ratio_derivative(u[j], eps[j]);
      store<kVec>(grad_output + i, du);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) products[j] *= m[j];
    return products;
  }
};

// s = G v / (d + eps sgn d)
template <typename storage_t, typename Stabilizer>
struct Ratio {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* multiplier;   // [targets, numel]
  const scalar_t* value;        // [numel]
  const scalar_t* denominator;  // [numel]
  scalar_t* result;             // [targets, numel]
  LrpExtent extent;
  Stabilizer epsilon;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    Pack<acc_t, kVec> factor = load<kVec>(value + i);
    const Pack<acc_t, kVec> d = load<kVec>(denominator + i), eps = epsilon.template gather<kVec>(i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) factor[j] /= stabilize(d[j], eps[j]);
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> g = load<kVec>(multiplier + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) g[j] *= factor[j];
      store<kVec>(result + at, g);
    }
  }
};

// dG = t v / D, dv = sum_T t G / D, dd = -v dv / D with D = d + eps sgn d.
template <typename storage_t, typename Stabilizer>
struct RatioBackward {
  using scalar_t = storage_t;
  using acc_t = arithmetic_t<scalar_t>;

  const scalar_t* grad;         // [targets, numel]
  const scalar_t* multiplier;   // [targets, numel]
  const scalar_t* value;        // [numel]
  const scalar_t* denominator;  // [numel]
  scalar_t* grad_multiplier;    // [targets, numel]
  scalar_t* grad_value;         // [numel]
  scalar_t* grad_denominator;   // [numel]
  LrpExtent extent;
  Stabilizer epsilon;

  template <int kVec>
  __device__ __forceinline__ void run(int64_t i) const {
    Pack<acc_t, kVec> factor = load<kVec>(value + i), d = load<kVec>(denominator + i);
    const Pack<acc_t, kVec> eps = epsilon.template gather<kVec>(i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      d[j] = stabilize(d[j], eps[j]);
      factor[j] /= d[j];
    }
    Pack<acc_t, kVec> products = filled<kVec>(acc_t(0));  // sum_T t G
    for (int64_t at = i; at < extent.targets * extent.numel; at += extent.numel) {
      Pack<acc_t, kVec> t = load<kVec>(grad + at);
      const Pack<acc_t, kVec> g = load<kVec>(multiplier + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        products[j] += t[j] * g[j];
        t[j] *= factor[j];
      }
      store<kVec>(grad_multiplier + at, t);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      products[j] /= d[j];
      d[j] = -products[j] * factor[j];
    }
    store<kVec>(grad_value + i, products);
    store<kVec>(grad_denominator + i, d);
  }
};

// Calls body with the stabiliser that a kernel is made for.
template <typename acc_t, typename Body>
int with_stabilizer(const LrpEpsilon& epsilon, const LrpExtent& extent, const Body& body) {
  if (epsilon.per_image == nullptr) return body(Uniform<acc_t>{static_cast<acc_t>(epsilon.value)});
  const LrpExtent images{extent.numel, extent.targets, extent.numel / epsilon.image, epsilon.image};
  return body(PerImage<acc_t>{In{epsilon.per_image}, ChannelMap(images)});
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int lrp_epsilon_scale(LrpDtype dtype, const void* multiplier, const void* addend, const void* output, const void* scale,
                      void* result, LrpExtent extent, LrpEpsilon epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    return with_stabilizer<arithmetic_t<scalar_t>>(epsilon, extent, [&](auto eps) {
      const ChannelMap channels(extent);
      const EpsilonScale<scalar_t, decltype(eps)> body{In{multiplier}, In{addend}, In{output}, In{scale},
                                                       Out{result},    extent,     channels,   eps};
      return launch_elementwise(body, extent.numel, vectorizable<scalar_t>(extent, multiplier, addend, output, result),
                                stream);
    });
  });
}

int64_t lrp_epsilon_scale_backward_workspace(LrpDtype dtype, LrpExtent extent) {
  return channel_sum_workspace(dtype, extent, 1);
}

int lrp_epsilon_scale_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* addend,
                               const void* output, const void* scale, void* grad_multiplier, void* grad_output,
                               void* grad_scale, void* workspace, LrpExtent extent, LrpEpsilon epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    const bool vectors = vectorizable<scalar_t>(extent, grad, multiplier, addend, output, grad_multiplier, grad_output);
    return with_stabilizer<arithmetic_t<scalar_t>>(epsilon, extent, [&](auto eps) {
      using Body = EpsilonScaleBackward<scalar_t, decltype(eps)>;
      const ChannelMap channels(extent);
      const Body body{In{grad},         In{multiplier}, In{addend}, In{output}, In{scale}, Out{grad_multiplier},
                      Out{grad_output}, extent,         channels,   eps};
      if (grad_scale == nullptr) return launch_elementwise(WithoutSum<Body>{body}, extent.numel, vectors, stream);
      return launch_channel_sum(body, extent, vectors, workspace, {grad_scale}, stream);
    });
  });
}

int lrp_ratio(LrpDtype dtype, const void* multiplier, const void* value, const void* denominator, void* result,
              LrpExtent extent, LrpEpsilon epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    return with_stabilizer<arithmetic_t<scalar_t>>(epsilon, extent, [&](auto eps) {
      const Ratio<scalar_t, decltype(eps)> body{In{multiplier}, In{value}, In{denominator}, Out{result}, extent, eps};
      return launch_elementwise(body, extent.numel,
                                vectorizable<scalar_t>(extent, multiplier, value, denominator, result), stream);
    });
  });
}

int lrp_ratio_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* value,
                       const void* denominator, void* grad_multiplier, void* grad_value, void* grad_denominator,
                       LrpExtent extent, LrpEpsilon epsilon, void* stream) {
  return with_storage(dtype, extent, [&](auto storage) {
    using scalar_t = decltype(storage);
    return with_stabilizer<arithmetic_t<scalar_t>>(epsilon, extent, [&](auto eps) {
      const RatioBackward<scalar_t, decltype(eps)> body{In{grad},
                                                        In{multiplier},
                                                        In{value},
                                                        In{denominator},
                                                        Out{grad_multiplier},
                                                        Out{grad_value},
                                                        Out{grad_denominator},
                                                        extent,
                                                        eps};
      return launch_elementwise(body, extent.numel,
                                vectorizable<scalar_t>(extent, grad, multiplier, value, denominator, grad_multiplier,
                                                       grad_value, grad_denominator),
                                stream);
    });
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

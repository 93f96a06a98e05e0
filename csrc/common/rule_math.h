// Rule arithmetic, written once for CPU and CUDA kernels. No torch headers. sgn 0 = +1 everywhere; NaN in gives NaN
// out.
#pragma once

#if defined(__CUDACC__)
#define LRP_HD __host__ __device__ __forceinline__
#else
#define LRP_HD inline __attribute__((always_inline))
#endif

namespace lrpkernels {

// m(u) = u / (u + epsilon) for u > 0, `leak` for u <= 0. Both branches are computed, so that loops over it vectorise.
template <typename acc_t>
LRP_HD acc_t relu_ratio(acc_t u, acc_t epsilon, acc_t leak) {
  const acc_t active = u / (u + epsilon);
  return u > acc_t(0) ? active : (u <= acc_t(0) ? leak : u);
}

// dm/du = epsilon / (u + epsilon)^2 for u > 0, else 0. Divided twice: the square of a tiny epsilon would underflow.
template <typename acc_t>
LRP_HD acc_t relu_ratio_derivative(acc_t u, acc_t epsilon) {
  const acc_t denominator = u + epsilon;
  const acc_t active = (epsilon / denominator) / denominator;
  return u > acc_t(0) ? active : (u <= acc_t(0) ? acc_t(0) : u);
}

// d + epsilon * sgn d
template <typename acc_t>
LRP_HD acc_t stabilize(acc_t d, acc_t epsilon) {
  return d >= acc_t(0) ? d + epsilon : d - epsilon;
}

// max(x, 0) and min(x, 0), with NaN in, NaN out.
template <typename acc_t>
LRP_HD acc_t positive_part(acc_t x) {
  return x <= acc_t(0) ? acc_t(0) : x;
}
template <typename acc_t>
LRP_HD acc_t negative_part(acc_t x) {
  return x >= acc_t(0) ? acc_t(0) : x;
}

}  // namespace lrpkernels

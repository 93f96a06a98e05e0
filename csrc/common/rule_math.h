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

// Denominator and factor of one element of an affine layer y = k x + c: G_in = G v factor / denominator.
template <typename acc_t>
struct AffineShare {
  acc_t denominator;  // z, or z+ = (k x)+ + c+, stabilised
  acc_t factor;       // k; under z+ the k of x's sign

  LRP_HD AffineShare(bool zplus, acc_t x, acc_t k, acc_t c, acc_t epsilon) {
    const acc_t z = zplus ? positive_part(k * x) + positive_part(c) : k * x + c;
    denominator = stabilize(z, epsilon);
    factor = !zplus ? k : (x >= acc_t(0) ? positive_part(k) : negative_part(k));
  }
};

// Its derivatives. With P = sum_T t G (t the incoming gradient): dD = -P v f / D^2, dv = P f / D, dx = dD k,
// dk = P v / D + dD x, dc = dD; under z+ each only where its positive part is.
template <typename acc_t>
struct AffineGradient {
  acc_t value;
  acc_t input;
  acc_t slope;
  acc_t shift;

  LRP_HD AffineGradient(bool zplus, acc_t product, acc_t v, acc_t x, acc_t k, acc_t c, acc_t epsilon) {
    const AffineShare<acc_t> share(zplus, x, k, c, epsilon);
    const acc_t part = product / share.denominator;
    value = part * share.factor;
    const acc_t denominator = -value * v / share.denominator;
    const bool through_product = !zplus || k * x > acc_t(0);
    const bool through_factor = !zplus || (x >= acc_t(0) ? k > acc_t(0) : k < acc_t(0));
    input = through_product ? denominator * k : acc_t(0);
    slope = (through_factor ? part * v : acc_t(0)) + (through_product ? denominator * x : acc_t(0));
    shift = !zplus || c > acc_t(0) ? denominator : acc_t(0);
  }
};

}  // namespace lrpkernels

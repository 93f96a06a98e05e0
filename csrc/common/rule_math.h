// Rule arithmetic, written once for CPU and CUDA kernels. No torch headers. sgn 0 = +1 everywhere; NaN in gives NaN
// out.
#pragma once

#if defined(__CUDACC__)
#define LRP_HD __host__ __device__ __forceinline__
#else
#define LRP_HD inline __attribute__((always_inline))
#endif

namespace lrpkernels {

// m(u) = u / (u + epsilon) for u > 0, 0 for u <= 0. Both branches are computed, so that loops over it vectorise.
template <typename acc_t>
LRP_HD acc_t relu_ratio(acc_t u, acc_t epsilon) {
  const acc_t active = u / (u + epsilon);
  return u > acc_t(0) ? active : (u <= acc_t(0) ? acc_t(0) : u);
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

// 0 where x < 0, else s. A NaN s stays one, so that it cannot hide behind a negative x.
template <typename acc_t>
LRP_HD acc_t unless_negative(acc_t x, acc_t s) {
  return s == s && x < acc_t(0) ? acc_t(0) : s;
}

// The share of all contributions and, added to it, that of the positive ones: the epsilon rule has 1 and 0, z+ 0 and 1,
// the gamma rule 1 and gamma.
template <typename acc_t>
struct Favour {
  acc_t whole;
  acc_t positive;

  // The weight of a contribution, by whether it is positive.
  LRP_HD acc_t of(bool is_positive) const { return whole + (is_positive ? positive : acc_t(0)); }
};

// Denominator and factor of one element of an affine layer y = k x + c: G_in = G v factor / denominator.
template <typename acc_t>
struct AffineShare {
  acc_t denominator;  // whole * z + positive * z+, z+ = (k x)+ + c+, stabilised
  acc_t factor;       // whole * k + positive * (the k of x's sign)

  LRP_HD AffineShare(Favour<acc_t> favour, acc_t x, acc_t k, acc_t c, acc_t epsilon) {
    const acc_t product = k * x;
    const acc_t z = favour.whole * (product + c) + favour.positive * (positive_part(product) + positive_part(c));
    denominator = stabilize(z, epsilon);
    factor = k * favour.of(same_sign(x, k));
  }

  // Selects a number and compares it once: with a choice between two comparisons loops would not vectorise.
  LRP_HD static bool same_sign(acc_t x, acc_t k) { return (x >= acc_t(0) ? k : -k) > acc_t(0); }
};

// Its derivatives. With P = sum_T t G (t the incoming gradient): dD = -P v f / D^2, dv = P f / D, dx = dD k,
// dk = P v / D + dD x, dc = dD, each term weighted like its contribution.
template <typename acc_t>
struct AffineGradient {
  acc_t value;
  acc_t input;
  acc_t slope;
  acc_t shift;

  LRP_HD AffineGradient(Favour<acc_t> favour, acc_t product, acc_t v, acc_t x, acc_t k, acc_t c, acc_t epsilon) {
    const AffineShare<acc_t> share(favour, x, k, c, epsilon);
    const acc_t part = product / share.denominator;
    value = part * share.factor;
    const acc_t denominator = -value * v / share.denominator;
    const acc_t through_product = denominator * favour.of(k * x > acc_t(0));
    input = through_product * k;
    slope = part * v * favour.of(AffineShare<acc_t>::same_sign(x, k)) + through_product * x;
    shift = denominator * favour.of(c > acc_t(0));
  }
};

}  // namespace lrpkernels

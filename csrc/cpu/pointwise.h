// The pointwise ops on CPU tensors, for ops that have them as a part.
#pragma once
#include <tuple>

#include "../common/checks.h"

namespace lrpkernels::cpu {

Tensor epsilon_scale(const Tensor& multiplier, const OptionalTensor& addend, const OptionalTensor& output,
                     const OptionalTensor& scale, double epsilon, double leak);

std::tuple<Tensor, Tensor, Tensor> epsilon_scale_backward(const Tensor& grad, const Tensor& multiplier,
                                                          const OptionalTensor& addend, const OptionalTensor& output,
                                                          const OptionalTensor& scale, double epsilon, double leak,
                                                          bool need_scale);

}  // namespace lrpkernels::cpu

// Boundary checks shared by the CPU and CUDA registrations. Messages give op, argument, expectation and what came.
#pragma once
#include <cmath>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "layout.h"

namespace lrpkernels {

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return torch::headeronly::toString(dtype);
  }
}

// Arithmetic dtype: that of per-channel tensors.
inline ScalarType arithmetic_dtype(ScalarType storage) {
  return storage == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType expected) {
  if (tensor.scalar_type() != expected)
    fail(op, ": ", name, " must have dtype ", dtype_name(expected), ", got ", dtype_name(tensor.scalar_type()));
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const Tensor& multiplier) {
  const std::string expected = device_name(multiplier), got = device_name(tensor);
  if (expected != got) fail(op, ": ", name, " must be on the multiplier's device ", expected, ", got ", got);
}

// Same shape, dtype and device as the multiplier.
inline void check_like_multiplier(const char* op, const char* name, const Tensor& tensor, const Tensor& multiplier) {
  check_same_device(op, name, tensor, multiplier);
  check_dtype(op, name, tensor, multiplier.scalar_type());
  const auto expected = sizes_of(multiplier), got = sizes_of(tensor);
  if (expected != got)
    fail(op, ": ", name, " must have the multiplier's shape ", format_sizes(expected), ", got ", format_sizes(got));
}

// A forward value [B, C, ...] beside a multiplier [T * B, C, ...]: only the first sizes may differ, by a whole factor
// T.
inline void check_forward_value(const char* op, const char* name, const Tensor& value, const Tensor& multiplier) {
  check_same_device(op, name, value, multiplier);
  check_dtype(op, name, value, multiplier.scalar_type());
  const auto outer = sizes_of(multiplier), inner = sizes_of(value);
  bool fits = outer.size() == inner.size();
  for (size_t d = 1; fits && d < outer.size(); ++d) fits = outer[d] == inner[d];
  if (fits && !outer.empty()) fits = inner[0] == 0 ? outer[0] == 0 : outer[0] % inner[0] == 0;
  if (!fits)
    fail(op, ": ", name, " must have shape [B, C, ...] for a multiplier [T * B, C, ...] = ", format_sizes(outer),
         ", got ", format_sizes(inner));
}

inline void check_epsilon(const char* op, double epsilon) {
  if (!(epsilon >= 0.0) || std::isinf(epsilon)) fail(op, ": epsilon must be finite and >= 0, got ", epsilon);
}

// One number per channel, in the arithmetic dtype.
inline void check_vector(const char* op, const char* name, const Tensor& vector, const Tensor& multiplier,
                         const char* shape, int64_t channels) {
  check_same_device(op, name, vector, multiplier);
  check_dtype(op, name, vector, arithmetic_dtype(multiplier.scalar_type()));
  const std::vector<int64_t> expected = {channels}, got = sizes_of(vector);
  if (expected != got)
    fail(op, ": ", name, " must have shape ", shape, " = ", format_sizes(expected), ", got ", format_sizes(got));
}

// Likewise, of the multiplier [T * B, C, ...].
inline void check_channels(const char* op, const char* name, const Tensor& vector, const Tensor& multiplier) {
  check_vector(op, name, vector, multiplier, "[C]", multiplier.size(1));
}

// Two forward values of one shape beside a multiplier.
inline void check_forward_pair(const char* op, const char* name, const Tensor& value, const char* other_name,
                               const Tensor& other, const Tensor& multiplier) {
  check_forward_value(op, name, value, multiplier);
  check_forward_value(op, other_name, other, multiplier);
  const auto expected = sizes_of(value), got = sizes_of(other);
  if (expected != got)
    fail(op, ": ", other_name, " must have the shape of ", name, " ", format_sizes(expected), ", got ",
         format_sizes(got));
}

// One stabiliser per image of a forward value [B, ...], in the arithmetic dtype; their numbers are not looked at.
inline void check_epsilons(const char* op, const OptionalTensor& epsilons, const Tensor& value) {
  if (!epsilons) return;
  if (value.dim() < 1) fail(op, ": epsilons need a value with a batch dimension, got shape []");
  check_vector(op, "epsilons", *epsilons, value, "[B]", value.size(0));
}

inline void check_epsilon_scale(const char* op, const Tensor& multiplier, const OptionalTensor& addend,
                                const OptionalTensor& output, const OptionalTensor& scale, double epsilon) {
  check_epsilon(op, epsilon);
  if (addend) check_like_multiplier(op, "addend", *addend, multiplier);
  if (output) check_forward_value(op, "output", *output, multiplier);
  if (!scale) return;
  if (multiplier.dim() < 2)
    fail(op, ": multiplier must have a channel dimension when scale is given, got shape ",
         format_sizes(sizes_of(multiplier)));
  check_channels(op, "scale", *scale, multiplier);
}

inline void check_ratio(const char* op, const Tensor& multiplier, const Tensor& value, const Tensor& denominator,
                        double epsilon) {
  check_epsilon(op, epsilon);
  check_forward_pair(op, "value", value, "denominator", denominator, multiplier);
}

}  // namespace lrpkernels

// The catalogue of ops: every schema of torch.ops.lrpkernels (and of its emulated twin, see cuda/register.cpp).
// Conventions and formulas: docs/architecture.md.
#include <torch/csrc/stable/library.h>

#if defined(LRP_EMULATED_CUDA)
STABLE_TORCH_LIBRARY(lrpkernels_emulated, m) {
#else
STABLE_TORCH_LIBRARY(lrpkernels, m) {
#endif
  m.def(
      "epsilon_scale(Tensor multiplier, Tensor? addend, Tensor? output, Tensor? scale, float epsilon, float leak) "
      "-> Tensor");
  m.def(
      "epsilon_scale_backward(Tensor grad, Tensor multiplier, Tensor? addend, Tensor? output, Tensor? scale, "
      "float epsilon, float leak, bool need_scale) -> (Tensor, Tensor, Tensor)");
  m.def("ratio(Tensor multiplier, Tensor value, Tensor denominator, float epsilon) -> Tensor");
  m.def(
      "ratio_backward(Tensor grad, Tensor multiplier, Tensor value, Tensor denominator, float epsilon) "
      "-> (Tensor, Tensor, Tensor)");
}

// The catalogue of ops: every schema of torch.ops.lrpkernels (and of its emulated twin, see cuda/register.cpp).
// Conventions and formulas: docs/architecture.md.
#include <torch/csrc/stable/library.h>

#if defined(LRP_EMULATED_CUDA)
STABLE_TORCH_LIBRARY(lrpkernels_emulated, m) {
#else
STABLE_TORCH_LIBRARY(lrpkernels, m) {
#endif
  m.def(
      "epsilon_scale(Tensor multiplier, Tensor? addend, Tensor? output, Tensor? scale, float epsilon, "
      "Tensor? epsilons=None) -> Tensor");
  m.def(
      "epsilon_scale_backward(Tensor grad, Tensor multiplier, Tensor? addend, Tensor? output, Tensor? scale, "
      "float epsilon, bool need_scale, Tensor? epsilons=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ratio(Tensor multiplier, Tensor value, Tensor denominator, float epsilon, Tensor? epsilons=None) "
      "-> Tensor");
  m.def(
      "ratio_backward(Tensor grad, Tensor multiplier, Tensor value, Tensor denominator, float epsilon, "
      "Tensor? epsilons=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "max_pool_winner(Tensor multiplier, Tensor indices, int[] input_size, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
  m.def(
      "max_pool_winner_backward(Tensor grad, Tensor indices, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation) -> Tensor");
  m.def(
      "average_pool(Tensor input, int[] output_size, int[] kernel_size, int[] stride, int[] padding, "
      "bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "average_pool_transpose(Tensor multiplier, int[] input_size, int[] kernel_size, int[] stride, int[] padding, "
      "bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "conv_relevance(Tensor multiplier, Tensor? addend, Tensor? output, Tensor? scale, Tensor? value, "
      "Tensor? denominator, Tensor weight, int weights, Tensor? input, Tensor? low, Tensor? high, int[] input_size, "
      "int[] stride, int[] padding, int[] dilation, int groups, float epsilon, bool tensor_cores) "
      "-> Tensor");
  m.def(
      "conv_apply(Tensor input, Tensor weight, int weights, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool tensor_cores) -> Tensor");
  m.def(
      "conv_weight_gradient(Tensor multiplier, Tensor? addend, Tensor? output, Tensor? scale, Tensor? value, "
      "Tensor? denominator, Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
      "float epsilon, bool tensor_cores) -> Tensor");
  m.def(
      "affine(Tensor multiplier, Tensor value, Tensor input, Tensor slope, Tensor? shift, float whole, float positive, "
      "float epsilon) "
      "-> Tensor");
  m.def(
      "affine_backward(Tensor grad, Tensor multiplier, Tensor value, Tensor input, Tensor slope, Tensor? shift, "
      "float whole, float positive, float epsilon) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sample_norm(Tensor multiplier, Tensor input, Tensor? weight, int row, int inner, bool centred, float epsilon) "
      "-> Tensor");
  m.def(
      "sample_norm_backward(Tensor grad, Tensor multiplier, Tensor input, Tensor? weight, int row, int inner, "
      "bool centred, float epsilon) -> (Tensor, Tensor, Tensor)");
  m.def("sum_zplus(Tensor multiplier, Tensor a, Tensor b, float epsilon) -> (Tensor, Tensor)");
  m.def(
      "sum_zplus_backward(Tensor grad_a, Tensor grad_b, Tensor multiplier, Tensor a, Tensor b, float epsilon) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("heatmap_scores(Tensor heatmap, Tensor mask, int kept, float decay) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "heatmap_scores_backward(Tensor heatmap, Tensor mask, Tensor order, Tensor grad_foreground, "
      "Tensor grad_signed_foreground, Tensor grad_background, float decay) -> Tensor");
}

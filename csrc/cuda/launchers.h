// The C interface of every CUDA launcher. Raw pointers, sizes and a stream; the result is a cudaError_t as int (0 =
// success). Callers check shapes, dtypes, devices and layout; launchers check only grid limits. Empty tensors launch
// nothing.
#pragma once
#include "../common/types.h"

extern "C" {
// addend, output, scale may be null.
int lrp_epsilon_scale(LrpDtype dtype, const void* multiplier, const void* addend, const void* output, const void* scale,
                      void* result, LrpExtent extent, LrpEpsilon epsilon, void* stream);

// Bytes of scratch memory for the two-stage channel reduction below (0 when grad_scale is null).
int64_t lrp_epsilon_scale_backward_workspace(LrpDtype dtype, LrpExtent extent);

// grad_output is null when output is; grad_scale (and workspace) may be null.
int lrp_epsilon_scale_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* addend,
                               const void* output, const void* scale, void* grad_multiplier, void* grad_output,
                               void* grad_scale, void* workspace, LrpExtent extent, LrpEpsilon epsilon, void* stream);

int lrp_ratio(LrpDtype dtype, const void* multiplier, const void* value, const void* denominator, void* result,
              LrpExtent extent, LrpEpsilon epsilon, void* stream);

int lrp_ratio_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* value,
                       const void* denominator, void* grad_multiplier, void* grad_value, void* grad_denominator,
                       LrpExtent extent, LrpEpsilon epsilon, void* stream);

// Winner takes all: multiplier [T * B, C, output], indices [B, C, output] (int64, flat positions in a channel's input
// plane) -> result [T * B, C, input]; overlapping windows add up.
int lrp_max_pool_winner(LrpDtype dtype, const void* multiplier, const int64_t* indices, void* result, LrpPool pool,
                        void* stream);

// The adjoint: grad [T * B, C, input] -> grad_multiplier [T * B, C, output].
int lrp_max_pool_winner_backward(LrpDtype dtype, const void* grad, const int64_t* indices, void* grad_multiplier,
                                 LrpPool pool, void* stream);

// Average pooling, input [T * B, C, input] -> result [T * B, C, output]; also the adjoint of the next one.
int lrp_average_pool(LrpDtype dtype, const void* input, void* result, LrpPool pool, void* stream);

// The transposed map: multiplier [T * B, C, output] -> result [T * B, C, input].
int lrp_average_pool_transpose(LrpDtype dtype, const void* multiplier, void* result, LrpPool pool, void* stream);

// Bytes of scratch memory for the packed weights of lrp_conv_relevance (transposed = 1) or lrp_conv (0); 0 for
// depthwise.
int64_t lrp_conv_workspace(LrpDtype dtype, LrpConv conv, LrpConvWeights weights, int transposed);

// The transposed map: multiplier [T * B, C_out, output] -> result [T * B, C_in, input]. Workspace 16-byte aligned.
int lrp_conv_relevance(LrpDtype dtype, const void* multiplier, LrpConvScale scale, const void* weight,
                       LrpConvWeights weights, LrpConvResult combine, void* result, void* workspace, LrpConv conv,
                       void* stream);

// The map itself, without bias: input [T * B, C_in, input] -> result [T * B, C_out, output]; weights W, W+ or W-.
int lrp_conv(LrpDtype dtype, const void* input, const void* weight, LrpConvWeights weights, void* result,
             void* workspace, LrpConv conv, void* stream);

// Bytes of scratch memory for the split sums below.
int64_t lrp_conv_weight_gradient_workspace(LrpDtype dtype, LrpConv conv);

// grad_weight [C_out, C_in / groups, kernel] = sum over images and positions of s (made from multiplier as above) times
// input [T * B, C_in, input].
int lrp_conv_weight_gradient(LrpDtype dtype, const void* multiplier, LrpConvScale scale, const void* input,
                             void* grad_weight, void* workspace, LrpConv conv, void* stream);

// Bytes of scratch memory for the selection below.
int64_t lrp_heatmap_scores_workspace(LrpHeatmap shape);

// What the heatmap loss is made of, with A = |R| and the mask m; results in the arithmetic type:
//   foreground [images, maps] = sum A m,  signed_foreground [images, maps] = sum R m,
//   background [images, maps, channels] = GWRP of A (1 - m): the weighted mean over positions in descending order with
//   weights decay^rank, of which the first `kept` are summed and all are in the denominator.
// order [rows, kept] (int32) receives the positions by rank, -1 behind the last that is not zero.
int lrp_heatmap_scores(LrpDtype dtype, const void* heatmap, const void* mask, void* foreground, void* signed_foreground,
                       void* background, int32_t* order, void* workspace, LrpHeatmap shape, void* stream);

int lrp_heatmap_scores_backward(LrpDtype dtype, const void* heatmap, const void* mask, const int32_t* order,
                                const void* grad_foreground, const void* grad_signed_foreground,
                                const void* grad_background, void* grad_heatmap, LrpHeatmap shape, void* stream);

// A sum t = a + b under the z+ rule: s = G t / (a+ + b+ + eps); result_a is s where a >= 0, else 0, result_b likewise.
int lrp_sum_zplus(LrpDtype dtype, const void* multiplier, const void* a, const void* b, void* result_a, void* result_b,
                  LrpExtent extent, double epsilon, void* stream);

int lrp_sum_zplus_backward(LrpDtype dtype, const void* grad_a, const void* grad_b, const void* multiplier,
                           const void* a, const void* b, void* grad_multiplier, void* grad_input_a, void* grad_input_b,
                           LrpExtent extent, double epsilon, void* stream);

// A batch norm that stands alone, y = k_c x + c_c per channel; value: its output, or that of a ReLU behind it.
// G_in = G v k' / (d + eps sgn d), d = whole z + positive z+, z = k x + c, z+ = (k x)+ + c+, k' = whole k + positive (k
// of x's sign). The epsilon rule has whole = 1, positive = 0; z+ 0 and 1; gamma 1 and gamma. slope and shift are in the
// arithmetic type; shift may be null (0).
int lrp_affine(LrpDtype dtype, double whole, double positive, const void* multiplier, const void* value,
               const void* input, const void* slope, const void* shift, void* result, LrpExtent extent, double epsilon,
               void* stream);

int64_t lrp_affine_backward_workspace(LrpDtype dtype, LrpExtent extent);

// grad_slope and grad_shift are sums over all but the channel.
int lrp_affine_backward(LrpDtype dtype, double whole, double positive, const void* grad, const void* multiplier,
                        const void* value, const void* input, const void* slope, const void* shift,
                        void* grad_multiplier, void* grad_value, void* grad_input, void* grad_slope, void* grad_shift,
                        void* workspace, LrpExtent extent, double epsilon, void* stream);

// Layer, group, instance and RMS norm with the deviation as a constant: per row result = r (w G - mean(w G)), r = 1 /
// sqrt(variance + epsilon); without the mean where the norm is not centred. weight [channels], may be null.
int lrp_sample_norm(LrpDtype dtype, const void* multiplier, const void* input, const void* weight, void* result,
                    LrpNorm norm, void* stream);

// Bytes of scratch memory for the rows' statistics and the two-stage channel reduction.
int64_t lrp_sample_norm_backward_workspace(LrpDtype dtype, LrpNorm norm, bool need_weight);

// grad_weight is null when weight is.
int lrp_sample_norm_backward(LrpDtype dtype, const void* grad, const void* multiplier, const void* input,
                             const void* weight, void* grad_multiplier, void* grad_input, void* grad_weight,
                             void* workspace, LrpNorm norm, void* stream);
}

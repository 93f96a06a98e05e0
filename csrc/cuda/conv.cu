// Convolution relevance as implicit matrix products: the transposed map with a scaled input, and the map itself.
#include "conv_simt.cuh"

namespace lrpkernels::cuda {
namespace {

template <typename scalar_t>
ConvProblem<scalar_t> problem_of(const LrpConv& conv, LrpConvWeights weights, bool transposed) {
  ConvProblem<scalar_t> p{};
  const Image input = image_of(conv, conv.input, conv.channels_in);
  const Image output = image_of(conv, conv.output, conv.channels_out);
  p.x = transposed ? output : input;
  p.y = transposed ? input : output;
  int64_t phases = 1, largest = 1;
  p.most_taps = 1;
  for (int d = 0; d < 2; ++d) {
    p.dimension[d] = {static_cast<int>(conv.kernel[d]), static_cast<int>(conv.stride[d]),
                      static_cast<int>(conv.padding[d]), static_cast<int>(conv.dilation[d])};
    p.most_taps *= p.dimension[d].most_taps(transposed);
    const int own = p.dimension[d].phases(transposed);
    phases *= own;
    largest *= ceil_div<int64_t>(d == 0 ? p.y.height : p.y.width, own);
  }
  p.transposed = transposed;
  p.weights = weights;
  p.images = conv.targets * conv.batch;
  p.batch = conv.batch;
  p.groups = static_cast<int>(conv.groups);
  p.sets = weight_sets(weights);
  p.columns = ceil_div(p.y.channels * p.sets, simt::kColumns) * simt::kColumns;
  p.padded_channels = ceil_div(p.x.channels, simt::kDepth) * simt::kDepth;
  p.column_tiles = p.columns / simt::kColumns;
  p.row_tiles = ceil_div<int64_t>(p.images * largest, simt::kRows);
  return p;
}

template <typename scalar_t>
int64_t packed_elements(const ConvProblem<scalar_t>& p) {
  const int64_t phases =
      static_cast<int64_t>(p.dimension[0].phases(p.transposed)) * p.dimension[1].phases(p.transposed);
  return phases * p.groups * p.most_taps * p.padded_channels * p.columns;
}

template <typename scalar_t>
int launch_conv(ConvProblem<scalar_t> p, const void* weight, void* workspace, bool channels_last, void* stream) {
  using acc_t = arithmetic_t<scalar_t>;
  auto* const packed = static_cast<acc_t*>(workspace);
  p.packed = packed;
  const int64_t numel = packed_elements(p);
  LRP_LAUNCH(simt::pack_weights_kernel<scalar_t>, grid_for(numel, kThreads), kThreads, stream,
             static_cast<const scalar_t*>(weight), packed, p, numel);
  const int64_t phases =
      static_cast<int64_t>(p.dimension[0].phases(p.transposed)) * p.dimension[1].phases(p.transposed);
  const int64_t blocks = phases * p.groups * p.row_tiles * p.column_tiles;
  if (blocks > max_grid_x()) return kInvalidValue;
  if (channels_last) {
    LRP_LAUNCH((simt::conv_simt_kernel<scalar_t, true>), static_cast<unsigned>(blocks), kThreads, stream, p);
  } else {
    LRP_LAUNCH((simt::conv_simt_kernel<scalar_t, false>), static_cast<unsigned>(blocks), kThreads, stream, p);
  }
  return LRP_LAST_ERROR();
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int64_t lrp_conv_workspace(LrpDtype dtype, LrpConv conv, LrpConvWeights weights, int transposed) {
  const int64_t elements = packed_elements(problem_of<float>(conv, weights, transposed != 0));
  return elements * static_cast<int64_t>(dtype == kFloat64 ? sizeof(double) : sizeof(float));
}

int lrp_conv_relevance(LrpDtype dtype, const void* multiplier, LrpConvScale scale, const void* weight,
                       LrpConvWeights weights, LrpConvResult combine, void* result, void* workspace, LrpConv conv,
                       void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    if (!fits(conv)) return kInvalidValue;
    if (conv.targets * conv.batch * conv.channels_in * conv.input[0] * conv.input[1] == 0) return 0;
    ConvProblem<scalar_t> p = problem_of<scalar_t>(conv, weights, true);
    p.x_values = scaled<scalar_t>(multiplier, scale);
    p.y_values = static_cast<scalar_t*>(result);
    p.input = static_cast<const scalar_t*>(combine.input);
    p.low = static_cast<const acc_t*>(combine.low);
    p.high = static_cast<const acc_t*>(combine.high);
    p.times_input = combine.times_input != 0;
    p.accumulate = combine.accumulate != 0;
    return launch_conv(p, weight, workspace, conv.channels_last != 0, stream);
  });
}

int lrp_conv(LrpDtype dtype, const void* input, const void* weight, LrpConvWeights weights, void* result,
             void* workspace, LrpConv conv, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(conv) || weight_sets(weights) != 1) return kInvalidValue;
    if (conv.targets * conv.batch * conv.channels_out * conv.output[0] * conv.output[1] == 0) return 0;
    ConvProblem<scalar_t> p = problem_of<scalar_t>(conv, weights, false);
    p.x_values = scaled<scalar_t>(input, LrpConvScale{});
    p.y_values = static_cast<scalar_t*>(result);
    return launch_conv(p, weight, workspace, conv.channels_last != 0, stream);
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

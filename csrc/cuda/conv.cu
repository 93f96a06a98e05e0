// Convolution relevance as implicit matrix products: the transposed map with a scaled input, and the map itself.
#include "conv_depthwise.cuh"
#include "conv_mma.cuh"
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
  int64_t largest = 1;
  p.most_taps = 1;
  for (int d = 0; d < 2; ++d) {
    p.dimension[d] = {static_cast<int>(conv.kernel[d]), static_cast<int>(conv.stride[d]),
                      static_cast<int>(conv.padding[d]), static_cast<int>(conv.dilation[d])};
    p.most_taps *= p.dimension[d].most_taps(transposed);
    largest *= ceil_div<int64_t>(d == 0 ? p.y.height : p.y.width, p.dimension[d].phases(transposed));
  }
  p.transposed = transposed;
  p.weights = weights;
  p.images = conv.targets * conv.batch;
  p.batch = conv.batch;
  p.groups = static_cast<int>(conv.groups);
  p.sets = weight_sets(weights);
  const int depth = use_tensor_cores<scalar_t>(conv) ? mma::kDepth<scalar_t> : simt::kDepth;
  p.columns = ceil_div(p.y.channels * p.sets, kTileColumns) * kTileColumns;
  p.padded_channels = ceil_div(p.x.channels, depth) * depth;
  p.column_tiles = p.columns / kTileColumns;
  p.row_tiles = ceil_div<int64_t>(p.images * largest, kTileRows);
  return p;
}

template <typename scalar_t>
int64_t phases_of(const ConvProblem<scalar_t>& p) {
  return static_cast<int64_t>(p.dimension[0].phases(p.transposed)) * p.dimension[1].phases(p.transposed);
}

template <typename scalar_t>
int64_t packed_elements(const ConvProblem<scalar_t>& p) {
  return bounded_product({phases_of(p), p.groups, p.most_taps, p.padded_channels, p.columns});
}

template <typename scalar_t>
int64_t blocks_of(const ConvProblem<scalar_t>& p) {
  return bounded_product({phases_of(p), p.groups, p.row_tiles, p.column_tiles});
}

// Phases multiply blocks and packed weights: large strides can make too many, even for a convolution that fits.
template <typename scalar_t>
bool launchable(const ConvProblem<scalar_t>& p) {
  return packed_elements(p) < kMostElements && blocks_of(p) <= max_grid_x();
}

// Channels-last vectors: 16 aligned bytes lie within the channels of a group.
template <typename scalar_t>
bool channel_vectors(const ConvProblem<scalar_t>& p) {
  const ScaledInput<scalar_t>& x = p.x_values;
  return p.x.channels % kVectorWidth<scalar_t> == 0 &&
         all_aligned(x.multiplier, x.addend, x.output, x.value, x.denominator);
}

template <typename scalar_t>
void launch_tensor_cores(const ConvProblem<scalar_t>& p, const scalar_t* weight, void* workspace, unsigned blocks,
                         bool channels_last, void* stream) {
  const int64_t words = packed_elements(p) / mma::kPerWord<scalar_t>;
  LRP_LAUNCH(mma::pack_weights_kernel<scalar_t>, grid_for(words, kThreads), kThreads, stream, weight,
             static_cast<uint32_t*>(workspace), p, words);
  if (!channels_last) {
    LRP_LAUNCH((mma::conv_mma_kernel<scalar_t, false, false>), blocks, kThreads, stream, p);
  } else if (channel_vectors(p)) {
    LRP_LAUNCH((mma::conv_mma_kernel<scalar_t, true, true>), blocks, kThreads, stream, p);
  } else {
    LRP_LAUNCH((mma::conv_mma_kernel<scalar_t, true, false>), blocks, kThreads, stream, p);
  }
}

template <typename scalar_t>
void launch_simt(const ConvProblem<scalar_t>& p, const scalar_t* weight, void* workspace, unsigned blocks,
                 bool channels_last, void* stream) {
  const int64_t numel = packed_elements(p);
  LRP_LAUNCH(simt::pack_weights_kernel<scalar_t>, grid_for(numel, kThreads), kThreads, stream, weight,
             static_cast<arithmetic_t<scalar_t>*>(workspace), p, numel);
  if (channels_last) {
    LRP_LAUNCH((simt::conv_simt_kernel<scalar_t, true>), blocks, kThreads, stream, p);
  } else {
    LRP_LAUNCH((simt::conv_simt_kernel<scalar_t, false>), blocks, kThreads, stream, p);
  }
}

template <typename scalar_t>
int launch_conv(ConvProblem<scalar_t> p, const void* weight, void* workspace, const LrpConv& conv, void* stream) {
  if (is_depthwise(conv)) return launch_depthwise(p, weight, conv, stream);
  p.packed = workspace;
  if (!launchable(p)) return kInvalidValue;
  const auto* const weights = static_cast<const scalar_t*>(weight);
  const auto grid = static_cast<unsigned>(blocks_of(p));
  const bool channels_last = conv.channels_last != 0;
  if constexpr (kHasTensorCores<scalar_t>) {
    if (use_tensor_cores<scalar_t>(conv)) {
      launch_tensor_cores(p, weights, workspace, grid, channels_last, stream);
      return LRP_LAST_ERROR();
    }
  }
  launch_simt(p, weights, workspace, grid, channels_last, stream);
  return LRP_LAST_ERROR();
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int64_t lrp_conv_workspace(LrpDtype dtype, LrpConv conv, LrpConvWeights weights, int transposed) {
  if (!fits(conv) || is_depthwise(conv)) return 0;
  const auto bytes = [&](auto storage) {
    using scalar_t = decltype(storage);
    const ConvProblem<scalar_t> p = problem_of<scalar_t>(conv, weights, transposed != 0);
    if (!launchable(p)) return int64_t(0);
    return packed_elements(p) *
           static_cast<int64_t>(use_tensor_cores<scalar_t>(conv) ? sizeof(scalar_t) : sizeof(arithmetic_t<scalar_t>));
  };
  return dtype == kFloat64 ? bytes(double{}) : (dtype == kFloat32 ? bytes(float{}) : bytes(__half{}));
}

int lrp_conv_relevance(LrpDtype dtype, const void* multiplier, LrpConvScale scale, const void* weight,
                       LrpConvWeights weights, LrpConvResult combine, void* result, void* workspace, LrpConv conv,
                       void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(conv)) return kInvalidValue;
    if (conv.targets * conv.batch * conv.channels_in * conv.input[0] * conv.input[1] == 0) return 0;
    ConvProblem<scalar_t> p = problem_of<scalar_t>(conv, weights, true);
    p.x_values = scaled<scalar_t>(multiplier, scale);
    p.y_values = Out{result};
    p.input = In{combine.input};
    p.low = In{combine.low};
    p.high = In{combine.high};
    return launch_conv(p, weight, workspace, conv, stream);
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
    p.y_values = Out{result};
    return launch_conv(p, weight, workspace, conv, stream);
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

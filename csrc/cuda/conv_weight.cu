// The weight gradient of a convolution whose output gradient s is made from a multiplier while it is loaded: a matrix
// product over images and positions, split into parts that a second kernel adds in a fixed order.
#include "conv_weight_mma.cuh"
#include "conv_weight_simt.cuh"

namespace lrpkernels::cuda {
namespace {

constexpr int64_t kTargetBlocks = 512;    // a few per multiprocessor of the largest GPUs
constexpr int64_t kLeastPositions = 256;  // of a part: below, the second stage would cost more than it saves

// One element of the gradient per thread, in the order of the parts: their sum, written in the weight's order.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    weight_total_kernel(WeightProblem<scalar_t> p, scalar_t* total, FastDivisor columns, int64_t numel, int64_t parts) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += static_cast<double>(read_global(p.partial + part * numel + i));
    const int64_t row = columns.quotient(i);
    int channel, tap;
    p.column(static_cast<int>(i - row * p.columns), &channel, &tap);
    write_global(total + row * p.columns + static_cast<int64_t>(channel) * (p.columns / p.x.channels) + tap,
                 to_storage<scalar_t>(static_cast<arithmetic_t<scalar_t>>(sum)));
  }
}

struct Split {
  int64_t row_tiles, column_tiles, parts, part_positions;

  // A function of the shape and the tile alone, so that sums repeat from run to run.
  Split(const LrpConv& conv, int tile_rows, int tile_columns, int depth) {
    const int64_t rows = conv.channels_out / conv.groups;
    const int64_t columns = weight_columns(conv);
    row_tiles = ceil_div<int64_t>(rows, tile_rows);
    column_tiles = ceil_div<int64_t>(columns, tile_columns);
    const int64_t positions = conv.targets * conv.batch * conv.output[0] * conv.output[1];
    const int64_t wanted = ceil_div(kTargetBlocks, row_tiles * column_tiles * conv.groups);
    const int64_t most = positions > kLeastPositions ? positions / kLeastPositions : 1;
    const int64_t chosen = wanted < most ? wanted : most;
    part_positions = ceil_div<int64_t>(ceil_div(positions > 0 ? positions : 1, chosen), depth) * depth;
    parts = ceil_div(positions > 0 ? positions : 1, part_positions);
  }
};

template <typename scalar_t>
Split split_of(const LrpConv& conv) {
  if constexpr (kHasTensorCores<scalar_t>)
    if (use_tensor_cores<scalar_t>(conv))
      return Split(conv, mma::kWeightRows, mma::kWeightColumns, mma::kDepth<scalar_t>);
  return Split(conv, simt::kWeightRows, simt::kWeightColumns, simt::kWeightDepth);
}

int64_t weight_elements(const LrpConv& conv) { return conv.channels_out * weight_columns(conv); }

template <typename scalar_t>
void launch_product(const WeightProblem<scalar_t>& p, const LrpConv& conv, unsigned blocks, void* stream) {
  if constexpr (kHasTensorCores<scalar_t>) {
    if (use_tensor_cores<scalar_t>(conv)) {
      return with_flag(p.channels_last, [&](auto channels_last) {
        LRP_LAUNCH((mma::weight_mma_kernel<scalar_t, channels_last()>), blocks, kThreads, stream, p);
      });
    }
  }
  with_flag(p.channels_last, [&](auto channels_last) {
    LRP_LAUNCH((simt::weight_simt_kernel<scalar_t, channels_last()>), blocks, kThreads, stream, p);
  });
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int64_t lrp_conv_weight_gradient_workspace(LrpDtype dtype, LrpConv conv) {
  int64_t bytes = 0;
  if (!fits(conv) || weight_elements(conv) == 0) return bytes;
  with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    bytes =
        split_of<scalar_t>(conv).parts * weight_elements(conv) * static_cast<int64_t>(sizeof(arithmetic_t<scalar_t>));
    return 0;
  });
  return bytes;
}

int lrp_conv_weight_gradient(LrpDtype dtype, const void* multiplier, LrpConvScale scale, const void* input,
                             void* grad_weight, void* workspace, LrpConv conv, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    if (!fits(conv)) return kInvalidValue;
    const int64_t numel = weight_elements(conv);
    if (numel == 0) return 0;
    const Split split = split_of<scalar_t>(conv);
    WeightProblem<scalar_t> p{};
    p.s_values = scaled<scalar_t>(multiplier, scale);
    p.x_values = In{input};
    p.partial = Out{workspace};
    p.s = image_of(conv, conv.output, conv.channels_out);
    p.x = image_of(conv, conv.input, conv.channels_in);
    for (int d = 0; d < 2; ++d)
      p.dimension[d] = {static_cast<int>(conv.kernel[d]), static_cast<int>(conv.stride[d]),
                        static_cast<int>(conv.padding[d]), static_cast<int>(conv.dilation[d])};
    const int64_t plane = conv.output[0] * conv.output[1];
    p.plane = FastDivisor(plane > 0 ? plane : 1);
    p.width = FastDivisor(conv.output[1] > 0 ? conv.output[1] : 1);
    p.batch = conv.batch > 0 ? conv.batch : 1;
    p.positions = conv.targets * conv.batch * plane;
    p.part_positions = split.part_positions;
    p.columns = static_cast<int>(numel / conv.channels_out);
    p.row_tiles = static_cast<int>(split.row_tiles);
    p.column_tiles = static_cast<int>(split.column_tiles);
    p.groups = static_cast<int>(conv.groups);
    p.channels_last = conv.channels_last != 0;
    const int64_t blocks = split.parts * conv.groups * split.row_tiles * split.column_tiles;
    if (blocks > max_grid_x()) return kInvalidValue;
    launch_product(p, conv, static_cast<unsigned>(blocks), stream);
    LRP_LAUNCH(weight_total_kernel<scalar_t>, grid_for(numel, kThreads), kThreads, stream, p, Out{grad_weight},
               FastDivisor(p.columns), numel, split.parts);
    return LRP_LAST_ERROR();
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

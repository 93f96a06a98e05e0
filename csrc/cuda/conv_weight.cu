// The weight gradient of a convolution whose output gradient s is made from a multiplier while it is loaded: a matrix
// product over images and positions, split into parts that a second kernel adds in a fixed order.
#include "conv.cuh"

namespace lrpkernels::cuda {
namespace {

constexpr int kRows = 64, kColumns = 64, kDepth = 16;  // output channels, (input channel, kernel position), positions
constexpr int kPitch = kRows + 4;                      // spreads a column over the banks, keeps 16-byte alignment
constexpr int kLoads = kRows * kDepth / kThreads;      // of either operand, per thread and slab
constexpr int64_t kTargetBlocks = 512;                 // a few per multiprocessor of the largest GPUs
constexpr int64_t kLeastPositions = 256;  // of a part: below, the second stage would cost more than it saves

template <typename scalar_t>
struct WeightProblem {
  ScaledInput<scalar_t> s_values;
  const scalar_t* x_values;
  arithmetic_t<scalar_t>* partial;  // [parts, C_out, C_in / groups, kernel]
  Image s, x;
  ConvDimension dimension[2];
  FastDivisor plane, width;  // of s
  int64_t batch;
  int64_t positions;       // images * plane
  int64_t part_positions;  // a multiple of kDepth
  int columns;             // C_in / groups * kernel positions
  int row_tiles, column_tiles, groups;
  bool channels_last;

  // The channel and kernel position of a column. The order makes neighbouring columns neighbours in memory where it
  // can.
  __device__ __forceinline__ void column(int index, int* channel, int* tap) const {
    const int taps = columns / x.channels;
    *channel = channels_last ? index % x.channels : index / taps;
    *tap = channels_last ? index / x.channels : index % taps;
  }
};

struct Position {
  int64_t image;
  int y;
  int x;
};

// One operand's column: where its channel begins and by how much its kernel position shifts.
struct ColumnTable {
  int64_t channel_begin[kColumns];
  int64_t result[kColumns];  // in a row of the gradient; -1: no such column
  int y[kColumns];
  int x[kColumns];
};

// Block: 64 output channels by 64 (input channel, kernel position) pairs over one part of the positions.
template <typename scalar_t, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, 2) weight_gradient_kernel(WeightProblem<scalar_t> p) {
  using acc_t = arithmetic_t<scalar_t>;
  LRP_SHARED(acc_t, s_tile, [kDepth][kPitch]);
  LRP_SHARED(acc_t, x_tile, [kDepth][kPitch]);
  LRP_SHARED(ColumnTable, table, [1]);
  const int thread = threadIdx.x, across = thread % 16, down = thread / 16;
  int64_t block = blockIdx.x;
  const int column_begin = static_cast<int>(block % p.column_tiles) * kColumns;
  block /= p.column_tiles;
  const int row_begin = static_cast<int>(block % p.row_tiles) * kRows;
  block /= p.row_tiles;
  const int group = static_cast<int>(block % p.groups);
  const int64_t part = block / p.groups, begin = part * p.part_positions;
  const int64_t end = begin + p.part_positions < p.positions ? begin + p.part_positions : p.positions;

  if (thread < kColumns) {
    int channel, tap;
    p.column(column_begin + thread, &channel, &tap);
    const bool known = column_begin + thread < p.columns;
    const int ky = tap / p.dimension[1].kernel, kx = tap - ky * p.dimension[1].kernel;
    table[0].channel_begin[thread] = (static_cast<int64_t>(group) * p.x.channels + channel) * p.x.channel_step;
    table[0].result[thread] = known ? static_cast<int64_t>(channel) * (p.columns / p.x.channels) + tap : -1;
    table[0].y[thread] = known ? ky * p.dimension[0].dilation - p.dimension[0].padding : kNowhere;
    table[0].x[thread] = kx * p.dimension[1].dilation - p.dimension[1].padding;
  }
  __syncthreads();

  acc_t sum[4][4] = {};
  for (int64_t slab = begin; slab < end; slab += kDepth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      // Neighbouring threads: neighbouring channels (channels-last), else neighbouring positions.
      const int k = kChannelsLast ? thread / kRows + i * (kThreads / kRows) : thread % kDepth;
      const int line = kChannelsLast ? thread % kRows : thread / kDepth + i * (kThreads / kDepth);
      const int64_t at = slab + k;
      const int64_t image = p.plane.quotient(at);
      const auto flat = at - image * p.plane.divisor();
      const auto y = static_cast<int>(p.width.quotient(flat));
      const int x = static_cast<int>(flat - y * p.width.divisor());

      const bool row_inside = at < end && row_begin + line < p.s.channels;
      const int channel = group * p.s.channels + row_begin + line;
      const int64_t s_at = channel * p.s.channel_step + y * p.s.row_step + x * p.s.column_step;
      s_tile[k][line] =
          p.s_values.at(row_inside, image * p.s.image_step + s_at, image % p.batch * p.s.image_step + s_at, channel);

      const int from_y = y * p.dimension[0].stride + table[0].y[line],
                from_x = x * p.dimension[1].stride + table[0].x[line];
      const bool inside = at < end && from_y >= 0 && from_y < p.x.height && from_x >= 0 && from_x < p.x.width;
      const scalar_t zero = to_storage<scalar_t>(acc_t(0));
      x_tile[k][line] =
          to_arithmetic(read_global_if(inside,
                                       p.x_values + image * p.x.image_step + table[0].channel_begin[line] +
                                           from_y * p.x.row_step + from_x * p.x.column_step,
                                       zero));
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      acc_t s[4], x[4];
      load_four(s, &s_tile[k][4 * down]);
      load_four(x, &x_tile[k][4 * across]);
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[r][c] += s[r] * x[c];
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = row_begin + 4 * down + r;
    if (row >= p.s.channels) continue;
    const int64_t leading = (part * p.groups + group) * p.s.channels + row;
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (table[0].result[4 * across + c] >= 0)
        write_global(p.partial + leading * p.columns + table[0].result[4 * across + c], sum[r][c]);
  }
}

// One element of the gradient per thread: its parts, in order.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    weight_total_kernel(const arithmetic_t<scalar_t>* partial, scalar_t* total, int64_t numel, int64_t parts) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < numel;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += static_cast<double>(read_global(partial + part * numel + i));
    write_global(total + i, to_storage<scalar_t>(static_cast<arithmetic_t<scalar_t>>(sum)));
  }
}

struct Split {
  int64_t row_tiles, column_tiles, parts, part_positions;

  // A function of the shape alone, so that sums repeat from run to run.
  explicit Split(const LrpConv& conv) {
    const int64_t rows = conv.channels_out / conv.groups;
    const int64_t columns = conv.channels_in / conv.groups * conv.kernel[0] * conv.kernel[1];
    row_tiles = ceil_div<int64_t>(rows, kRows);
    column_tiles = ceil_div<int64_t>(columns, kColumns);
    const int64_t positions = conv.targets * conv.batch * conv.output[0] * conv.output[1];
    const int64_t wanted = ceil_div(kTargetBlocks, row_tiles * column_tiles * conv.groups);
    const int64_t most = positions > kLeastPositions ? positions / kLeastPositions : 1;
    const int64_t chosen = wanted < most ? wanted : most;
    part_positions = ceil_div<int64_t>(ceil_div(positions > 0 ? positions : 1, chosen), kDepth) * kDepth;
    parts = ceil_div(positions > 0 ? positions : 1, part_positions);
  }
};

int64_t weight_elements(const LrpConv& conv) {
  return conv.channels_out * (conv.channels_in / conv.groups) * conv.kernel[0] * conv.kernel[1];
}

}  // namespace

extern "C" {  // the launchers of launchers.h

int64_t lrp_conv_weight_gradient_workspace(LrpDtype dtype, LrpConv conv) {
  const auto bytes = static_cast<int64_t>(dtype == kFloat64 ? sizeof(double) : sizeof(float));
  return Split(conv).parts * weight_elements(conv) * bytes;
}

int lrp_conv_weight_gradient(LrpDtype dtype, const void* multiplier, LrpConvScale scale, const void* input,
                             void* grad_weight, void* workspace, LrpConv conv, void* stream) {
  return with_storage(dtype, [&](auto storage) {
    using scalar_t = decltype(storage);
    using acc_t = arithmetic_t<scalar_t>;
    if (!fits(conv)) return kInvalidValue;
    const int64_t numel = weight_elements(conv);
    if (numel == 0) return 0;
    const Split split(conv);
    WeightProblem<scalar_t> p{};
    p.s_values = scaled<scalar_t>(multiplier, scale);
    p.x_values = static_cast<const scalar_t*>(input);
    p.partial = static_cast<acc_t*>(workspace);
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
    if (p.channels_last) {
      LRP_LAUNCH((weight_gradient_kernel<scalar_t, true>), static_cast<unsigned>(blocks), kThreads, stream, p);
    } else {
      LRP_LAUNCH((weight_gradient_kernel<scalar_t, false>), static_cast<unsigned>(blocks), kThreads, stream, p);
    }
    LRP_LAUNCH(weight_total_kernel<scalar_t>, grid_for(numel, kThreads), kThreads, stream, p.partial,
               static_cast<scalar_t*>(grad_weight), numel, split.parts);
    return LRP_LAST_ERROR();
  });
}

}  // extern "C"
}  // namespace lrpkernels::cuda

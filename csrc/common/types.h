// How host code and kernels (CPU and CUDA) describe a tensor's type and size and a layer's geometry. No torch headers.
#pragma once
#include <cstdint>

// An untyped pointer that converts to the type of its destination: a field of a kernel's struct, or an argument.
struct In {
  const void* address;
  template <typename T>
  operator const T*() const {
    return static_cast<const T*>(address);
  }
};
struct Out {
  void* address;
  template <typename T>
  operator T*() const {
    return static_cast<T*>(address);
  }
};

// Storage type of the tensors; arithmetic is float, or double for kFloat64.
enum LrpDtype : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Forward values hold `numel` elements; multipliers and gradients hold `targets * numel`, target-major.
// The channel of element i is (i / inner) % channels. Per-channel tensors are in the arithmetic dtype.
struct LrpExtent {
  int64_t numel;
  int64_t targets;
  int64_t channels;
  int64_t inner;
};

// The stabiliser of a rule: one number, or with `per_image` (in the arithmetic dtype) one for each image of the forward
// values, an image being `image` neighbouring elements.
struct LrpEpsilon {
  double value;
  const void* per_image;  // or null
  int64_t image;
};

// A pooling layer of up to three spatial dimensions, depth first; missing dimensions have size, kernel,
// stride and dilation 1 and padding 0. Tensors are [targets * batch, channels, ...], NCHW or channels-last.
struct LrpPool {
  int64_t targets;
  int64_t batch;
  int64_t channels;
  int64_t input[3];
  int64_t output[3];
  int64_t kernel[3];  // not read by adaptive pooling, nor are the next three
  int64_t stride[3];
  int64_t padding[3];
  int64_t dilation[3];        // max pooling only
  int64_t divisor_override;   // average pooling only; 0: none
  int32_t count_include_pad;  // average pooling only
  int32_t adaptive;           // average pooling only: window o covers [floor(o in / out), ceil((o + 1) in / out))
  int32_t channels_last;
};

// A convolution of two spatial dimensions (one: height 1). Tensors are NCHW or channels-last; the weight is contiguous
// [channels_out, channels_in / groups, kernel]. Images beyond `batch` are further targets: forward values repeat for
// them.
struct LrpConv {
  int64_t targets;
  int64_t batch;
  int64_t channels_in;
  int64_t channels_out;
  int64_t groups;
  int64_t input[2];
  int64_t output[2];
  int64_t kernel[2];
  int64_t stride[2];
  int64_t padding[2];
  int64_t dilation[2];
  int32_t channels_last;
  int32_t tensor_cores;  // float32 in tf32, 16-bit types as they are, sums in float32; 0: arithmetic type throughout
};

// How the multiplier G at the convolution's output becomes s, elementwise, as tiles are loaded:
// s = (G + addend) * m(output) * scale_c * value / (denominator + eps sgn denominator); null pointers drop their
// factor.
struct LrpConvScale {
  const void* addend;       // [targets * batch, C_out, ...]
  const void* output;       // [batch, C_out, ...], u of m(u)
  const void* scale;        // [C_out], arithmetic type
  const void* value;        // [batch, C_out, ...], together with denominator
  const void* denominator;  // [batch, C_out, ...]
  double epsilon;
};

// Which weights a pass uses and how their results combine, a the layer's input.
enum LrpConvWeights : int {
  kWeight = 0,          // W
  kPositiveWeight = 1,  // W+
  kNegativeWeight = 2,  // W-
  kSameSign = 3,        // W+ where a >= 0, W- elsewhere
  kOppositeSign = 4,    // W- where a >= 0, W+ elsewhere
  kBox = 5,             // a (W^T s) - low (W+^T s) - high (W-^T s): relevance, not a multiplier
};

// What combining the weight sets of a pass needs beside the weight.
struct LrpConvResult {
  const void* input;  // a, [batch, C_in, ...]; null where nothing needs it
  const void* low;    // [C_in], arithmetic type; kBox only, as high
  const void* high;
};

// Heatmaps [images, maps, channels, positions] beside a foreground mask of 0 and 1, [images, mask_channels, positions]
// in the heatmap's dtype, mask_channels 1 or channels. A row is one channel of one map.
struct LrpHeatmap {
  int64_t images;
  int64_t maps;
  int64_t channels;
  int64_t positions;
  int64_t mask_channels;
  int64_t kept;  // ranks that count, 1 .. positions; 0: every position with the same weight (decay 1)
  double decay;  // in [0, 1]
};

// A norm over rows of `row` neighbouring elements of one sample: layer, group, instance (centred) or RMS norm. Without
// a weight there is one channel and extent.inner = row. With one, extent.inner is 1 and a row is a whole part of the
// weight, or a row consists of whole planes of extent.inner elements.
struct LrpNorm {
  LrpExtent extent;
  int64_t row;
  double epsilon;
  int32_t centred;
};

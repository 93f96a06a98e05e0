// Pooling of NCHW tensors by tiles. Windows make neighbouring threads read with strides, so that every access wastes
// part of each sector. A block therefore first copies the rows that its elements need to shared memory, 16 bytes a
// thread, and gathers there. A tile is some whole planes, or some rows of one plane.
#pragma once
#include "pool.cuh"

namespace lrpkernels::cuda {

// Elements of a tile's source and of its result. With winners 24 KiB of shared memory: at least 3 blocks fit a
// multiprocessor of every architecture.
template <typename scalar_t>
constexpr int kTileElements = sizeof(scalar_t) == 8 ? 1536 : 3072;
constexpr int kTileAlignment = 32;      // bytes: a sector; accesses of a warp begin at one
constexpr int64_t kWantedTiles = 1024;  // blocks that keep the largest GPUs busy

enum class Winners { kNone, kOfSource, kOfResult };

// How source and result of a tensor are cut.
struct PoolTiling {
  int from_width, to_width;  // rows: those of all depths, one after the other
  int from_plane, to_plane;  // elements
  int planes;                // of a tile
  int rows;                  // of the result's plane, of a tile
  int bands;                 // tiles of a plane; 1 unless planes is 1
  int64_t all_planes;        // batch * channels
  int64_t targets;
};

// Numbers of 16-byte vectors around [begin, end) of `from`, of which `limit` exist, to a tile; returns the place of
// `begin` there. `from` is 16-byte aligned.
template <typename scalar_t>
__device__ __forceinline__ int stage_values(uint4* tile, const scalar_t* from, int64_t begin, int64_t end,
                                            int64_t limit) {
  constexpr int kVec = kVectorWidth<scalar_t>, kAlign = kTileAlignment / static_cast<int>(sizeof(scalar_t));
  const int64_t first = begin / kAlign * kAlign;
  for (int64_t i = first + static_cast<int64_t>(threadIdx.x) * kVec; i < end; i += kThreads * kVec) {
    scalar_t* const to = reinterpret_cast<scalar_t*>(tile) + (i - first);
    if (i + kVec <= limit) {
      async_copy16(to, from + i, true);
    } else {
      for (int j = 0; j < kVec && i + j < limit; ++j) to[j] = read_global(from + i + j);
    }
  }
  return static_cast<int>(begin - first);
}

// The same for winners, which fit 32 bits.
__device__ __forceinline__ int stage_winners(int* tile, const int64_t* from, int64_t begin, int64_t end,
                                             int64_t limit) {
  constexpr int kAlign = kTileAlignment / static_cast<int>(sizeof(int64_t));
  const int64_t first = begin / kAlign * kAlign;
  for (int64_t i = first + static_cast<int64_t>(threadIdx.x) * 2; i < end; i += kThreads * 2) {
    int* const to = tile + (i - first);
    if (i + 2 <= limit) {
      int64_t pair[2];
      load_indices<2>(from + i, pair);
      to[0] = static_cast<int>(pair[0]);
      to[1] = static_cast<int>(pair[1]);
    } else {
      to[0] = static_cast<int>(read_global(from + i));
    }
  }
  return static_cast<int>(begin - first);
}

// Block: one tile after another, all targets of each. A Body has scalar_t, kWinners, kTileBlocks (that must fit a
// multiprocessor), the pointers source, indices and result, rows(begin, end) - the source rows for result rows
// [begin, end) - and at(), one element of the result.
template <typename Body>
__global__ void __launch_bounds__(kThreads, Body::kTileBlocks)
    pool_tile_kernel(Body body, PlaneMap to, PoolTiling tiling, int64_t tiles) {
  using scalar_t = typename Body::scalar_t;
  constexpr int kVec = kVectorWidth<scalar_t>, kAlign = kTileAlignment / static_cast<int>(sizeof(scalar_t));
  constexpr int kElements = kTileElements<scalar_t>;
  LRP_SHARED(uint4, values, [(kElements + 2 * kAlign) / kVec]);
  LRP_SHARED(int, winners, [Body::kWinners == Winners::kNone ? 1 : kElements + 8]);
  const auto* const source = reinterpret_cast<const scalar_t*>(values);

  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t group = tile / tiling.bands, plane = group * tiling.planes;
    const int row = static_cast<int>(tile - group * tiling.bands) * tiling.rows;
    const int planes =
        static_cast<int>(tiling.all_planes - plane < tiling.planes ? tiling.all_planes - plane : tiling.planes);
    const int last_row = row + tiling.rows, all_rows = tiling.to_plane / tiling.to_width;
    const Span from_rows = tiling.bands == 1 ? Span{0, tiling.from_plane / tiling.from_width}
                                             : body.rows(row, last_row < all_rows ? last_row : all_rows);
    const int64_t from_begin = plane * tiling.from_plane + static_cast<int64_t>(from_rows.begin) * tiling.from_width;
    const int64_t from_end =
        (plane + planes - 1) * tiling.from_plane + static_cast<int64_t>(from_rows.end) * tiling.from_width;
    const int64_t to_begin = plane * tiling.to_plane + static_cast<int64_t>(row) * tiling.to_width;
    const int64_t to_end = tiling.bands == 1
                               ? (plane + planes) * tiling.to_plane
                               : plane * tiling.to_plane +
                                     static_cast<int64_t>(last_row < all_rows ? last_row : all_rows) * tiling.to_width;
    int winners_at = 0;
    if constexpr (Body::kWinners == Winners::kOfSource)
      winners_at = stage_winners(winners, body.indices, from_begin, from_end, tiling.all_planes * tiling.from_plane);
    if constexpr (Body::kWinners == Winners::kOfResult)
      winners_at = stage_winners(winners, body.indices, to_begin, to_end, tiling.all_planes * tiling.to_plane);

    for (int64_t target = 0; target < tiling.targets; ++target) {
      const int64_t from_shift = target * tiling.all_planes * tiling.from_plane,
                    to_shift = target * tiling.all_planes * tiling.to_plane;
      const int values_at = stage_values(values, body.source, from_shift + from_begin, from_shift + from_end,
                                         tiling.targets * tiling.all_planes * tiling.from_plane);
      async_commit();
      async_wait<0>();
      __syncthreads();

      const int64_t first = (to_shift + to_begin) / kAlign * kAlign;
      const int64_t begin = to_shift + to_begin, end = to_shift + to_end;
      for (int64_t i = first + static_cast<int64_t>(threadIdx.x) * kVec; i < end; i += kThreads * kVec) {
        if (i + kVec <= begin) continue;
        // Of element i in the planes of this tile; in front of the tile for a vector that straddles its start.
        int local = static_cast<int>(i - begin) + row * tiling.to_width;
        const int skip = i < begin ? static_cast<int>(begin - i) : 0;
        local += skip;
        int own = local / tiling.to_plane;
        int position[3];
        to.locate(local - own * tiling.to_plane, position);
        Pack<typename Body::acc_t, kVec> pack;
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
          pack[j] = 0;
          if (j < skip || i + j >= end) continue;
          const int shift = own * tiling.from_plane - from_rows.begin * tiling.from_width;
          const int winner_shift =
              Body::kWinners == Winners::kOfSource ? winners_at + shift : winners_at + static_cast<int>(i + j - begin);
          pack[j] = body.at(source, values_at + shift, winners, winner_shift, position);
          to.advance(position);
          if (position[0] == to.depth) position[0] = 0, ++own;
        }
        if (skip == 0 && i + kVec <= end) {
          store<kVec>(body.result + i, pack);
        } else {
#pragma unroll
          for (int j = 0; j < kVec; ++j)
            if (j >= skip && i + j < end) write_global(body.result + i + j, to_storage<scalar_t>(pack[j]));
        }
      }
      __syncthreads();
    }
  }
}

// The most rows of the result that a tile of one plane can have; 0 if not even one.
template <typename Body>
int rows_of_tile(const Body& body, int from_width, int to_width, int to_rows, int from_rows) {
  constexpr int kElements = kTileElements<typename Body::scalar_t>;
  for (int rows = kElements / to_width < to_rows ? kElements / to_width : to_rows; rows > 0; rows /= 2) {
    int64_t most = 0, sum = 0;
    for (int row = 0; row < to_rows; row += rows) {
      const int length = body.rows(row, row + rows < to_rows ? row + rows : to_rows).length();
      most = length > most ? length : most;
      sum += length;
    }
    // Neighbouring tiles share rows; where they share most of them, tiles gain nothing.
    if (most * from_width <= kElements) return sum <= 2 * int64_t(from_rows) + 2 ? rows : 0;
  }
  return 0;
}

// Launches by tiles if the tensor can be cut into some; false: it cannot.
template <typename Body>
bool launch_tiles(const Body& body, const LrpPool& pool, const int64_t (&from)[3], const int64_t (&to)[3],
                  void* stream) {
  constexpr int kElements = kTileElements<typename Body::scalar_t>;
  const int64_t from_plane = from[0] * from[1] * from[2], to_plane = to[0] * to[1] * to[2];
  if (pool.channels_last != 0 || from_plane == 0 || to_plane == 0) return false;
  if (!all_aligned(body.source, body.result, body.indices)) return false;
  PoolTiling tiling{};
  tiling.from_width = static_cast<int>(from[2]), tiling.to_width = static_cast<int>(to[2]);
  tiling.from_plane = static_cast<int>(from_plane), tiling.to_plane = static_cast<int>(to_plane);
  tiling.all_planes = pool.batch * pool.channels, tiling.targets = pool.targets;
  const int64_t larger = from_plane > to_plane ? from_plane : to_plane;
  if (larger <= kElements) {
    int64_t planes = ceil_div(tiling.all_planes, kWantedTiles);
    planes = ceil_div<int64_t>(planes, 8) * 8;  // whole sectors, whatever the size of a plane
    tiling.planes = static_cast<int>(planes * larger <= kElements ? planes : kElements / larger);
    tiling.rows = static_cast<int>(to[0] * to[1]), tiling.bands = 1;
  } else {
    if (from[0] != 1 || to[0] != 1) return false;
    tiling.planes = 1;
    tiling.rows =
        rows_of_tile(body, tiling.from_width, tiling.to_width, static_cast<int>(to[1]), static_cast<int>(from[1]));
    if (tiling.rows == 0) return false;
    tiling.bands = static_cast<int>(ceil_div<int64_t>(to[1], tiling.rows));
  }
  const int64_t tiles = ceil_div<int64_t>(tiling.all_planes, tiling.planes) * tiling.bands;
  LRP_LAUNCH(pool_tile_kernel<Body>, grid_for(tiles, 1), kThreads, stream, body, PlaneMap(pool, to), tiling, tiles);
  return true;
}

}  // namespace lrpkernels::cuda

"""Seeded mistakes in the CUDA sources: the tests of each family must fail on every one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_on_cpu import FLOAT_ONLY, slow_unless
from cuda_on_cpu.build import compile_kernels

TESTS = Path(__file__).resolve().parent


class Mutant(NamedTuple):
    """A replacement in a source file, and the tests (a pytest -k expression) that must notice."""

    family: str
    path: str
    text: str
    replacement: str
    tests: str


MUTANTS = {
    "pointwise: no barrier after the chunk's products": Mutant(
        "pointwise",
        "cuda/channel_sum.cuh",
        """    __syncthreads();
    const int64_t first""",
        "    const int64_t first",
        "epsilon_scale_backward and float32",
    ),
    "pointwise: no barrier between the groups' sums and their total": Mutant(
        "pointwise",
        "cuda/channel_sum.cuh",
        """  __syncthreads();
  const int width""",
        "  const int width",
        "epsilon_scale_backward and float32",
    ),
    "pointwise: the vector path takes one element too many": Mutant(
        "pointwise",
        "cuda/elementwise.cuh",
        "if (i + kVec <= numel) {",
        "if (i + kVec <= numel + 1) {",
        "epsilon_scale and float32",
    ),
    "pointwise: the channel of the next row is forgotten": Mutant(
        "pointwise",
        "cuda/elementwise.cuh",
        "if (position == inner.divisor()) {",
        "if (position > inner.divisor()) {",
        "epsilon_scale and float32",
    ),
    "pointwise: vectors at misaligned addresses": Mutant(
        "pointwise",
        "cuda/elementwise.cuh",
        "return all_aligned(pointers...) && (extent.targets == 1",
        "return (true || all_aligned(pointers...)) && (extent.targets == 1",
        "ratio and float32",
    ),
    "pointwise: a sum starts from unset shared memory": Mutant(
        "pointwise",
        "cuda/channel_sum.cuh",
        "for (int g = 0; g < plan.groups; ++g) total",
        "for (int g = 0; g <= plan.groups; ++g) total",
        "epsilon_scale_backward and float32",
    ),
    "pointwise: the stabilizers of channels for those of images": Mutant(
        "pointwise",
        "cuda/pointwise.cu",
        "extent.numel / epsilon.image, epsilon.image};",
        "extent.numel / epsilon.image, extent.inner};",
        "per_image and float32",
    ),
    "pointwise: an image's last vector takes the next one's stabilizer": Mutant(
        "pointwise",
        "cuda/elementwise.cuh",
        "int64_t position = i - row * inner.divisor();",
        "int64_t position = i - row * inner.divisor() + 1;",
        "per_image and float32",
    ),
    "pointwise: work beyond the grid is dropped": Mutant(
        "pointwise",
        "cuda/elementwise.cuh",
        "i < numel; i += stride) {",
        "i < numel; i += numel + stride) {",
        "more_work",
    ),
    "pool: the last window of an input position is forgotten": Mutant(
        "pool", "common/geometry.h", "static_cast<int>(last / step) + 1;", "static_cast<int>(last / step);", "float32-0"
    ),
    "pool: the padding counts on one side only": Mutant(
        "pool",
        "common/geometry.h",
        "end < input + padding ? end : input + padding",
        "end < input ? end : input",
        "average and float32-0",
    ),
    "pool: no barrier before a tile is read": Mutant(
        "pool",
        "cuda/pool_tile.cuh",
        """      async_wait<0>();
      __syncthreads();""",
        "      async_wait<0>();",
        "float32-0",
    ),
    "pool: no barrier before the next target's tile": Mutant(
        "pool",
        "cuda/pool_tile.cuh",
        """        }
      }
      __syncthreads();""",
        """        }
      }""",
        "winner and float32",
    ),
    "pool: a tile is not awaited": Mutant("pool", "cuda/pool_tile.cuh", "async_wait<0>();", "", "float32-0"),
    "pool: a tile lacks its last row": Mutant(
        "pool",
        "cuda/pool_tile.cuh",
        "body.rows(row, last_row < all_rows ? last_row : all_rows)",
        "body.rows(row, last_row < all_rows ? last_row - 1 : all_rows)",
        "float32-0",
    ),
    "pool: channels-last strides for NCHW": Mutant(
        "pool",
        "cuda/pool.cuh",
        "channels(pool.channels_last != 0 ? pool.channels : 1)",
        "channels(pool.channels)",
        "float32-0",
    ),
    "conv: no barrier before the next slab": Mutant(
        "conv",
        "cuda/conv_simt.cuh",
        """      keep(buffer ^ 1, part);
      async_wait<0>();
    }
    __syncthreads();""",
        """      keep(buffer ^ 1, part);
      async_wait<0>();
    }""",
        "relevance and float32",
    ),
    "conv: the weights are not awaited": Mutant(
        "conv",
        "cuda/conv_mma.cuh",
        """      keep(buffer ^ 1, quad);
      async_wait<0>();""",
        "      keep(buffer ^ 1, quad);",
        "tensor and float32",
    ),
    "conv: one row below the image is read": Mutant(
        "conv",
        "cuda/conv_simt.cuh",
        "y >= 0 && y < p.x.height",
        "y >= 0 && y <= p.x.height",
        "relevance and float32",
    ),
    "conv: the rows of a fragment are swapped": Mutant(
        "conv", "cuda/fragments.cuh", "group + part % 2 * 8][word", "group + part / 2 * 8][word", "tensor and float32"
    ),
    "conv: a padded channel is not zero": Mutant(
        "conv", "cuda/conv.cuh", "|| channel >= p.x.channels || out", "|| out", "relevance and float32"
    ),
    "conv: forward values of the wrong image": Mutant(
        "conv",
        "cuda/conv.cuh",
        "table.a_begin[row] = image % p.batch",
        "table.a_begin[row] = image % p.images",
        "relevance and float32",
    ),
    "conv: the sum is not rounded to tf32": Mutant(
        "conv",
        "cuda/fragments.cuh",
        "uint32_t pack_word(float, const float* from) { return to_tf32(from[0]); }",
        "uint32_t pack_word(float, const float* from) {\n  uint32_t word;\n  memcpy(&word, from, 4);\n  return word;\n}",
        "tensor and float32",
    ),
    "conv_weight: no barrier before the next slab on tensor cores": Mutant(
        "conv_weight",
        "cuda/conv_weight_mma.cuh",
        """      ColumnShare::keep(x_tile[buffer ^ 1], x);
    }
    __syncthreads();""",
        """      ColumnShare::keep(x_tile[buffer ^ 1], x);
    }""",
        "tensor and float32",
    ),
    "conv_weight: no barrier after a slab": Mutant(
        "conv_weight",
        "cuda/conv_weight_simt.cuh",
        """sum[r][c] += s[r] * x[c];
    }
    __syncthreads();""",
        """sum[r][c] += s[r] * x[c];
    }""",
        "weight_gradient and float32",
    ),
    "conv_weight: the last position of a part counts twice": Mutant(
        "conv_weight",
        "cuda/conv_weight.cuh",
        "end = begin + p.part_positions < p.positions ? begin + p.part_positions :",
        "end = begin + p.part_positions + 1 < p.positions ? begin + p.part_positions + 1 :",
        "float32",
    ),
    "conv_weight: the rows of a fragment are swapped": Mutant(
        "conv_weight",
        "cuda/fragments.cuh",
        "group + part % 2 * 8][word",
        "group + part / 2 * 8][word",
        "tensor and float32",
    ),
    "conv_weight: the columns of the sum are swapped": Mutant(
        "conv_weight",
        "cuda/fragments.cuh",
        "8 * c + 2 * (threadIdx.x % 4) + part % 2;",
        "8 * c + threadIdx.x % 4 + 4 * (part % 2);",
        "tensor and float32",
    ),
    "conv_weight: the positions of the slab after next overwrite the next one's": Mutant(
        "conv_weight",
        "cuda/conv_weight_mma.cuh",
        "const PositionTable<scalar_t>& table = positions[index & 1];",
        "const PositionTable<scalar_t>& table = positions[(index + 1) & 1];",
        "tensor and float32",
    ),
    "conv_weight: x is not rounded to tf32": Mutant(
        "conv_weight",
        "cuda/fragments.cuh",
        "uint32_t pack_stored(const float* from) { return to_tf32(from[0]); }",
        "uint32_t pack_stored(const float* from) {\n  uint32_t word;\n  memcpy(&word, from, 4);\n  return word;\n}",
        "tensor",
    ),
    "conv_weight: parts are added in the order of the tile": Mutant(
        "conv_weight",
        "cuda/conv_weight.cu",
        "static_cast<int64_t>(channel) * (p.columns / p.x.channels) + tap,",
        "static_cast<int64_t>(i - row * p.columns),",
        "float32",
    ),
    "heatmap: no barrier between the stages of the sort": Mutant(
        "heatmap",
        "cuda/heatmap.cu",
        """          keys[j] = a;
        }
      }
      __syncthreads();""",
        """          keys[j] = a;
        }
      }""",
        "float32",
    ),
    "heatmap: one rank too many is kept": Mutant(
        "heatmap",
        "cuda/heatmap.cu",
        "if (with >= wanted && without < wanted)",
        "if (with > wanted && without <= wanted)",
        "float32",
    ),
    "sample_norm: weights of the first row for every row": Mutant(
        "sample_norm",
        "cuda/sample_norm.cu",
        """          const Pack<acc_t, kVec> w = args.template weights<kVec>(begin + i);
          acc_t part = 0;""",
        """          const Pack<acc_t, kVec> w = args.template weights<kVec>(i);
          acc_t part = 0;""",
        "float32",
    ),
    "sample_norm: every target has the first one's mean gradient": Mutant(
        "sample_norm",
        "cuda/sample_norm.cu",
        "read_global(table.shift + target * rows + r)",
        "read_global(table.shift + r)",
        "float32",
    ),
    "sample_norm: no barrier ahead of the block's sum": Mutant(
        "sample_norm",
        "cuda/sample_norm.cu",
        """      __syncthreads();
      const double result""",
        "      const double result",
        "float32",
    ),
    "heatmap: ties rank in descending order": Mutant(
        "heatmap", "cuda/heatmap.cu", "~static_cast<unsigned>(i)}", "static_cast<unsigned>(i)}", "float32"
    ),
    "affine: the second sum's place is the first's": Mutant(
        "affine",
        "cuda/channel_sum.cuh",
        "const int64_t elements = partial_elements(extent, kVec);",
        "const int64_t elements = 0;",
        "affine and float32",
    ),
    "affine: the sum's derivative misses the denominator": Mutant(
        "affine",
        "cuda/affine.cu",
        "da[j] = share - (x[j] > acc_t(0) ? drop : acc_t(0));",
        "da[j] = share;",
        "sum and float32",
    ),
}


# Quick runs take the first mutant of each family.
QUICK = {mutant.family: name for name, mutant in reversed(MUTANTS.items())}.values()


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow_unless(name in QUICK)) for name in MUTANTS])
def test_the_mutant_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    library = compile_kernels(mutant.family, patches=[FLOAT_ONLY, (mutant.path, mutant.text, mutant.replacement)])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--noconftest"]
    result = subprocess.run(
        [*command, f"test_cuda_{mutant.family}.py", "-k", mutant.tests],
        cwd=TESTS,
        env={**os.environ, "SHIM_LIBRARY": str(library)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1 or result.returncode < 0, result.stdout + result.stderr
    assert "no tests ran" not in result.stdout

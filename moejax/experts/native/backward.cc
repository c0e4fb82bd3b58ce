// One item is a range of an expert's hidden units, with all of the expert's rows. Gradients of
// weights belong to one item, which adds them up straight in the result, tile of rows after tile.
// The gradient of the rows is a sum over hidden units: items of one expert each make a part, and a
// last loop over tokens adds parts and slots in a fixed order. That of a combine weight comes free,
// as <hidden, dy down^T>, so no expert's output needs to be kept or computed again.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "gemm.h"
#include "packing.h"
#include "passes.h"
#include "scratch.h"
#include "simd.h"

namespace moejax {
namespace {

constexpr long kMostRows = 256;        // of a tile
constexpr long kRowFloats = 131072;    // of a tile's gathered rows: fewer rows where D is large
constexpr long kBlockFloats = 32768;   // of one packed block of a weight matrix
constexpr long kItemsPerThread = 8;    // that a perfectly even split would have

std::atomic<int32_t> most_parts{0};

// Items, and where each expert's parts begin: part p of a row is at `start[e] + p * rows(e) + row`.
struct Split {
  std::vector<Item> items;
  std::vector<long> start, parts;
  long size = 0;  // rows of all parts

  Split(const Problem& problem, const Layout& layout, int threads)
      : start(problem.experts), parts(problem.experts) {
    long total = 0;
    for (int e = 0; e < problem.experts; e++) total += layout.rows(e) * padded(problem.widths[e]);
    const long most = threads == 1 ? total : total / (kItemsPerThread * threads);
    for (int e = 0; e < problem.experts; e++) {
      const long width = problem.widths[e], panels = padded(width) / kPanel, rows = layout.rows(e);
      if (width == 0) continue;
      const long cost = rows * padded(width);
      const long wanted = std::clamp((cost + most) / (most + 1), 1L, panels);
      const long step = (panels + wanted - 1) / wanted * kPanel;
      start[e] = size;
      for (long f = 0; f < width; f += step) {
        const long end = std::min(width, f + step);
        items.push_back({e, f, end, static_cast<int>(parts[e]++), rows * (end - f)});
      }
      size += parts[e] * rows;
    }
    dearest_first(items);
  }
};

struct Results {
  float* dx;       // [split.size, padded D]
  float* dweight;  // [split.size]
  float* const* dweights;
};

// Everything of one block of hidden units that does not depend on the tile of rows.
struct Block {
  long f;             // first unit within the expert
  int units, padded;  // of the block
  const float* down;  // packed transposed
  const float* into;  // packed, all projections as one matrix `[into * padded, D]`
  const float* again[2];  // packed transposed, where pre-activations are computed again
};

struct Tile {
  int rows;
  long panel;            // numbers in a panel of these rows
  const float *x, *dy;   // panels over D
  const float* weight;   // [rows]
  const float* pre[2];   // first panel of the block
  long pre_stride;       // between panels of `pre`
};

struct Buffers {
  float *dhidden, *hidden, *dpre, *dot;
};

void differentiate(const Problem& problem, const Block& block, const Tile& tile, const Buffers& b,
                   long from, long dx_row, long part_row, bool first_rows, bool first_block,
                   const Results& results) {
  const int into = problem.into(), depth = static_cast<int>(padded(problem.dim));
  const long pre_panels = block.padded / kPanel;
  for (int p = 0; p < pre_panels; p++) {
    multiply(tile.dy, tile.panel, block.down + static_cast<long>(p) * depth * kPanel, tile.rows,
             depth, b.dhidden, kPanel, false);
    const float* pre[2];
    float* dpre[2];
    for (int i = 0; i < into; i++) {
      pre[i] = tile.pre[i] + p * tile.pre_stride;
      dpre[i] = b.dpre + (i * pre_panels + p) * tile.panel;
    }
    activate_backward(problem.activation, pre, b.dhidden, tile.weight, tile.rows,
                      b.hidden + p * tile.panel, dpre, b.dot);
  }
  for (int row = 0; row < tile.rows; row++) {
    float& dot = results.dweight[part_row + row];
    dot = sum(load(b.dot + static_cast<long>(row) * kLanes)) + (first_block ? 0.0f : dot);
  }
  // Gradients of weights: `[units, D]` each, from panels over units and panels over D.
  for (int i = 0; i <= into; i++) {
    const float* left = i < into ? b.dpre + i * pre_panels * tile.panel : b.hidden;
    const float* right = i < into ? tile.x : tile.dy;
    for (int f = 0; f < block.units; f += kPanel) {
      for (long d = 0; d < problem.dim; d += kPanel) {
        multiply_transposed(left + f / kPanel * tile.panel, right + d / kPanel * tile.panel,
                            tile.rows, std::min(kPanel, block.units - f),
                            static_cast<int>(std::min<long>(kPanel, problem.dim - d)),
                            results.dweights[i] + from + f * problem.dim + d, problem.dim,
                            !first_rows);
      }
    }
  }
  // All projections into the hidden units are one product: their sum is over units as well.
  for (long d = 0; d < depth; d += kPanel) {
    multiply(b.dpre, tile.panel, block.into + d * into * block.padded, tile.rows,
             into * block.padded, results.dx + dx_row * depth + d, depth, !first_block);
  }
}

void run(const Problem& problem, const Layout& layout, const Split& split, const Item& item,
         const float* saved, const float* dy, const Results& results) {
  const int e = item.expert, into = problem.into();
  const long dim = problem.dim, depth = padded(dim), rows = layout.rows(e);
  const long width = problem.widths[e];
  if (rows == 0) {
    for (int i = 0; i <= into; i++) {
      std::memset(results.dweights[i] + (layout.unit[e] + item.begin) * dim, 0,
                  (item.end - item.begin) * dim * sizeof(float));
    }
    return;
  }
  const bool again = layout.saved[e] < 0;
  const long block_most =
      std::min(std::clamp(kBlockFloats / depth / kPanel * kPanel, long{kPanel}, 128L),
               padded(item.end - item.begin));
  const long fit = std::clamp(kRowFloats / depth, 2L * kPanel, kMostRows);
  const long tiles = (rows + fit - 1) / fit;
  const long tile_most = (rows + tiles - 1) / tiles;

  Arena& arena = Arena::of_this_thread();
  arena.reset((1 + (again ? 2 : 1) * into) * block_most * depth + 2 * tile_most * depth +
              (1 + (again ? 2 : 1) * into) * tile_most * block_most +
              tile_most * (kPanel + kLanes + 1));
  float* down = arena.take(block_most * depth);
  float* packed = arena.take(into * block_most * depth);
  float* transposed = arena.take(again ? into * block_most * depth : 0);
  float* x = arena.take(tile_most * depth);
  float* y = arena.take(tile_most * depth);
  float* weight = arena.take(tile_most);
  const Buffers buffers{arena.take(tile_most * kPanel), arena.take(tile_most * block_most),
                        arena.take(into * tile_most * block_most),
                        arena.take(tile_most * kLanes)};
  float* pre = arena.take(again ? into * tile_most * block_most : 0);

  const int32_t* order = layout.order.data() + layout.first[e];
  const long part = split.start[e] + item.part * rows;
  for (long f = item.begin; f < item.end; f += block_most) {
    Block block{f, static_cast<int>(std::min(block_most, item.end - f)), 0, down, packed, {}};
    block.padded = static_cast<int>(padded(block.units));
    const long from = (layout.unit[e] + f) * dim;
    pack_transposed(problem.weights[into] + from, block.units, dim, down);
    for (int i = 0; i < into; i++) {
      pack(problem.weights[i] + from, block.units, dim, packed, into * block.padded,
           i * block.padded);
      if (again) {
        block.again[i] = transposed + i * block.padded * depth;
        pack_transposed(problem.weights[i] + from, block.units, dim,
                        transposed + i * block.padded * depth);
      }
    }
    for (long row = 0; row < rows; row += tile_most) {
      const int count = static_cast<int>(std::min(tile_most, rows - row));
      Tile tile{count, static_cast<long>(count) * kPanel, x, y, weight, {}, 0};
      gather(problem.x, dim, order + row, problem.slots, count, x);
      gather(dy, dim, order + row, problem.slots, count, y);
      for (int r = 0; r < count; r++) weight[r] = problem.weight[order[row + r]];
      for (int i = 0; i < into; i++) {
        if (again) {
          float* own = pre + i * block.padded * static_cast<long>(count);
          for (int p = 0; p < block.padded / kPanel; p++) {
            multiply(x, tile.panel, block.again[i] + static_cast<long>(p) * depth * kPanel, count,
                     static_cast<int>(depth), own + p * tile.panel, kPanel, false);
          }
          tile.pre[i] = own;
          tile.pre_stride = tile.panel;
        } else {
          tile.pre[i] =
              saved + layout.saved[e] + (i * padded(width) + f) * rows + row * kPanel;
          tile.pre_stride = rows * kPanel;
        }
      }
      std::memset(buffers.dot, 0, static_cast<size_t>(count) * kLanes * sizeof(float));
      differentiate(problem, block, tile, buffers, from, part + row, part + row, row == 0,
                    f == item.begin, results);
    }
  }
}

}  // namespace

void backward(const Problem& problem, long capacity, const Pool& pool, const float* saved,
              const float* dy, float* dx, float* dweight, float* const* dweights) {
  const Layout layout(problem, capacity);
  const Split split(problem, layout, pool.threads);
  for (const long parts : split.parts) {
    for (int32_t most = most_parts; parts > most;) {
      if (most_parts.compare_exchange_weak(most, static_cast<int32_t>(parts))) break;
    }
  }
  const long dim = problem.dim, depth = padded(dim), slots = problem.slots;
  const Shared scratch(split.size * (depth + 1));
  const Results results{scratch.data(), scratch.data() + split.size * depth, dweights};
  long units = 0;
  for (int e = 0; e < problem.experts; e++) units += problem.widths[e];
  for (int i = 0; i <= problem.into(); i++) advise_huge(dweights[i], units * dim * sizeof(float));
  parallel_for(pool, static_cast<int>(split.items.size()), [&](int i) {
    run(problem, layout, split, split.items[i], saved, dy, results);
  });

  constexpr long kTokens = 128;
  parallel_for(pool, static_cast<int>((problem.tokens + kTokens - 1) / kTokens), [&](int chunk) {
    const long end = std::min(problem.tokens, (chunk + 1) * kTokens);
    std::vector<long> parts;  // rows to add up for one token
    for (long t = chunk * kTokens; t < end; t++) {
      parts.clear();
      for (long i = t * slots; i < (t + 1) * slots; i++) {
        const long position = layout.position[i];
        float dot = 0;
        if (position >= 0) {
          const int e = problem.expert[i];
          for (long p = 0; p < split.parts[e]; p++) {
            parts.push_back(split.start[e] + p * layout.rows(e) + position - layout.first[e]);
            dot += results.dweight[parts.back()];
          }
        }
        dweight[i] = dot;
      }
      for (long d = 0; d < dim; d += kLanes) {
        Vec sum{};
        for (const long part : parts) sum += load(results.dx + part * depth + d);
        if (d + kLanes <= dim) {
          store(dx + t * dim + d, sum);
        } else {
          for (long j = d; j < dim; j++) dx[t * dim + j] = sum[j - d];
        }
      }
    }
  });
}

}  // namespace moejax

extern "C" int32_t moejax_native_most_parts() { return moejax::most_parts; }

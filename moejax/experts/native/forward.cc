// One item is a range of an expert's rows. Its rows are gathered once; then block after block of
// hidden units goes through: weights packed into the cache, pre-activations, activation, and the
// product with the projection down, added to the item's rows of output. A last loop over tokens
// adds each token's rows in the order of its slots, so that no two threads write to one number
// and the result does not depend on who was faster.

#include <algorithm>

#include "gemm.h"
#include "packing.h"
#include "passes.h"
#include "scratch.h"
#include "simd.h"

namespace moejax {
namespace {

// With its weights, an item shall fit into an L2 cache of 1 MiB; docs/performance.md.
constexpr long kMostRows = 256;
constexpr long kRowFloats = 131072;   // of an item's gathered rows: fewer rows where D is large
constexpr long kBlockFloats = 32768;  // of one packed block of a weight matrix

long block_units(const Problem& problem) {
  return std::clamp(kBlockFloats / padded(problem.dim) / kPanel * kPanel, long{kPanel}, 256L);
}

std::vector<Item> row_items(const Problem& problem, const Layout& layout, int threads) {
  // Several items for each thread, also when there are few rows in all.
  const long fit = std::clamp(kRowFloats / padded(problem.dim), 2L * kPanel, kMostRows);
  const long most = std::clamp(layout.active() / (4 * threads) + 1, long{kPanel}, fit);
  std::vector<Item> items;
  for (int e = 0; e < problem.experts; e++) {
    const long rows = layout.rows(e), parts = (rows + most - 1) / most;
    if (rows == 0) continue;
    const long step = (rows + parts - 1) / parts;
    for (long begin = 0; begin < rows; begin += step) {
      const long end = std::min(rows, begin + step);
      items.push_back({e, begin, end, 0, (end - begin) * problem.widths[e]});
    }
  }
  dearest_first(items);
  return items;
}

void run(const Problem& problem, const Layout& layout, const Item& item, float* saved, float* out) {
  const int e = item.expert, rows = static_cast<int>(item.end - item.begin), into = problem.into();
  const long dim = problem.dim, depth = padded(dim), width = problem.widths[e];
  const long block = std::min(block_units(problem), padded(width));
  const long panel = static_cast<long>(rows) * kPanel;  // numbers in a panel of this item's rows

  Arena& arena = Arena::of_this_thread();
  arena.reset(rows * depth + (into + 1) * block * depth + rows * block + 2 * panel);
  float* x = arena.take(rows * depth);
  float* packed[3];
  for (int i = 0; i <= into; i++) packed[i] = arena.take(block * depth);
  float* hidden = arena.take(rows * block);
  float* unsaved = arena.take(2 * panel);

  const long first = layout.first[e] + item.begin;
  gather(problem.x, dim, layout.order.data() + first, problem.slots, rows, x);
  out += first * depth;
  for (long f = 0; f < width; f += block) {
    const int units = static_cast<int>(std::min(block, width - f));
    const int units_padded = static_cast<int>(padded(units));
    const long from = (layout.unit[e] + f) * dim;
    for (int i = 0; i < into; i++) pack_transposed(problem.weights[i] + from, units, dim, packed[i]);
    pack(problem.weights[into] + from, units, dim, packed[into], units_padded, 0);
    for (int p = 0; p < units_padded / kPanel; p++) {
      float* pre[2];
      for (int i = 0; i < into; i++) {
        // Kept panels have all rows of the expert, of which these are a range.
        const long kept = i * padded(width) + f + p * kPanel;
        pre[i] = layout.saved[e] < 0
                     ? unsaved + i * panel
                     : saved + layout.saved[e] + kept * layout.rows(e) + item.begin * kPanel;
        multiply(x, panel, packed[i] + p * depth * kPanel, rows, static_cast<int>(depth), pre[i],
                 kPanel, false);
      }
      activate(problem.activation, pre, rows, hidden + p * panel);
    }
    for (long d = 0; d < depth; d += kPanel) {
      multiply(hidden, panel, packed[into] + d * units_padded, rows, units_padded, out + d, depth,
               f > 0);
    }
  }
}

}  // namespace

void forward(const Problem& problem, long capacity, const Pool& pool, float* saved, float* y) {
  const Layout layout(problem, capacity);
  const long dim = problem.dim, depth = padded(dim), slots = problem.slots;
  const Shared scratch(layout.active() * depth);
  advise_huge(saved, capacity * sizeof(float));
  const std::vector<Item> items = row_items(problem, layout, pool.threads);
  parallel_for(pool, static_cast<int>(items.size()),
               [&](int i) { run(problem, layout, items[i], saved, scratch.data()); });

  constexpr long kTokens = 128;
  parallel_for(pool, static_cast<int>((problem.tokens + kTokens - 1) / kTokens), [&](int chunk) {
    const long end = std::min(problem.tokens, (chunk + 1) * kTokens);
    for (long t = chunk * kTokens; t < end; t++) {
      for (long d = 0; d < dim; d += kLanes) {
        Vec sum{};
        for (long i = t * slots; i < (t + 1) * slots; i++) {
          const long position = layout.position[i];
          if (position >= 0) sum += problem.weight[i] * load(scratch.data() + position * depth + d);
        }
        if (d + kLanes <= dim) {
          store(y + t * dim + d, sum);
        } else {
          for (long j = d; j < dim; j++) y[t * dim + j] = sum[j - d];
        }
      }
    }
  });
}

}  // namespace moejax

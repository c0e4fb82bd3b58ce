#include "layout.h"

#include <algorithm>

#include "gemm.h"

namespace moejax {

Layout::Layout(const Problem& problem, long capacity)
    : position(problem.tokens * problem.slots),
      first(problem.experts + 1),
      unit(problem.experts),
      saved(problem.experts) {
  const int experts = problem.experts;
  // An expert of width 0 returns 0, so nobody computes its assignments.
  const auto computed = [&](int32_t expert) {
    return static_cast<uint32_t>(expert) < static_cast<uint32_t>(experts) &&
           problem.widths[expert] > 0;
  };
  std::vector<long> next(experts);
  for (size_t i = 0; i < position.size(); i++) {
    if (computed(problem.expert[i])) next[problem.expert[i]]++;
  }
  long units = 0, kept = 0;
  for (int e = 0; e < experts; e++) {
    const long rows = next[e];
    const long numbers = rows * padded(problem.widths[e]) * problem.into();
    first[e + 1] = first[e] + rows;
    next[e] = first[e];
    unit[e] = units;
    units += problem.widths[e];
    saved[e] = kept + numbers <= capacity ? kept : -1;
    if (saved[e] >= 0) kept += numbers;
  }
  order.resize(active());
  for (size_t i = 0; i < position.size(); i++) {
    position[i] = -1;
    if (!computed(problem.expert[i])) continue;
    position[i] = static_cast<int32_t>(next[problem.expert[i]]++);
    order[position[i]] = static_cast<int32_t>(i);
  }
}

void dearest_first(std::vector<Item>& items) {
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.cost > b.cost; });
}

}  // namespace moejax

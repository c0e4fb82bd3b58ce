// Who computes what: the assignments of a call sorted by expert, and its work items.
#pragma once
#include <cstdint>
#include <vector>

#include "activations.h"

namespace moejax {

// One call. `[T, D]` tokens, `[T, K]` slots, experts of `widths[E]` hidden units; `weights` are
// `[sum of widths, D]` each, one row per hidden unit, the projection down last.
struct Problem {
  long tokens, dim, slots;
  int experts;
  const int64_t* widths;
  Activation activation;
  const float* x;
  const int32_t* expert;  // [T, K]; an id outside [0, E) is an empty slot
  const float* weight;    // [T, K]
  const float* weights[3];

  int into() const { return projections(activation); }
};

// The assignments `t*K + k` in order of expert, then of position: a counting sort.
struct Layout {
  std::vector<int32_t> order;     // [active]
  std::vector<int32_t> position;  // [T*K], where in `order`; -1: nobody computes it
  std::vector<long> first;        // [E + 1], each expert's first position
  std::vector<long> unit;         // [E], each expert's first hidden unit
  std::vector<long> saved;        // [E], where its pre-activations are kept; -1: computed again

  // `capacity`: numbers that the buffer of kept pre-activations has room for. Whoever fits, in
  // order of expert, is kept: the backward pass comes to the same result from the same counts.
  Layout(const Problem& problem, long capacity);

  long rows(int expert) const { return first[expert + 1] - first[expert]; }
  long active() const { return first.back(); }
};

// A part of one expert's work: a range of its rows (forward) or hidden units (backward).
struct Item {
  int expert;
  long begin, end;
  int part;   // number of the range within the expert
  long cost;  // rows times hidden units
};

// The dearest first: taken in this order by whoever is free, they end together.
void dearest_first(std::vector<Item>& items);

}  // namespace moejax

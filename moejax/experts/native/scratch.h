// Memory that a call needs and nobody sees. It is kept between calls, so that a training step does
// not fault its pages in again, up to a bound; docs/experts.md says how much there is.
#pragma once
#include <cstddef>
#include <cstdint>

namespace moejax {

// Asks for huge pages under memory that is about to be written for the first time: one fault for
// 2 MiB instead of 512. A hint; small ranges and systems without them are left as they are.
void advise_huge(void* memory, size_t bytes);

// Memory of one call, shared by its threads; goes back to a free list at the end of its scope.
class Shared {
 public:
  explicit Shared(size_t floats);
  ~Shared();
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  float* data() const { return static_cast<float*>(memory_); }

 private:
  void* memory_;
  size_t bytes_;
};

// Memory of the calling thread for one work item. `reset` forgets what `take` gave out before and
// makes room for `floats` numbers in at most 16 pieces; pieces begin on cache lines.
class Arena {
 public:
  static Arena& of_this_thread();
  void reset(size_t floats);
  float* take(size_t floats);
  ~Arena();

 private:
  char* memory_ = nullptr;
  size_t bytes_ = 0, used_ = 0;
};

}  // namespace moejax

// Bytes held now by free lists, arenas and running calls, and the most that ever were.
extern "C" void moejax_native_scratch(int64_t* held, int64_t* peak);

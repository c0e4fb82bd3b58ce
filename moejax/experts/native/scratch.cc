#include "scratch.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace moejax {
namespace {

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kLine = 64;
constexpr size_t kMostKept = size_t{256} << 20;  // of the free list; what is more is freed at once

std::atomic<int64_t> held{0}, peak{0};

void count(int64_t bytes) {
  const int64_t now = held.fetch_add(bytes) + bytes;
  for (int64_t most = peak; now > most && !peak.compare_exchange_weak(most, now);) {
  }
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void* allocate(size_t bytes) {
  void* memory = std::aligned_alloc(kHuge, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  advise_huge(memory, bytes);
  count(static_cast<int64_t>(bytes));
  return memory;
}

void release(void* memory, size_t bytes) {
  std::free(memory);
  count(-static_cast<int64_t>(bytes));
}

struct FreeList {
  struct Block {
    void* memory;
    size_t bytes;
  };
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};

// Never destroyed: XLA's threads may outlive this library's static objects.
FreeList& free_list() {
  static FreeList* list = new FreeList;
  return *list;
}

}  // namespace

void advise_huge(void* memory, size_t bytes) {
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(memory), kHuge);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

Shared::Shared(size_t floats) : bytes_(round_up(floats * sizeof(float) + 1, kHuge)) {
  {
    FreeList& list = free_list();
    const std::lock_guard<std::mutex> lock(list.mutex);
    auto best = list.blocks.end();
    for (auto block = list.blocks.begin(); block != list.blocks.end(); ++block) {
      if (block->bytes >= bytes_ && (best == list.blocks.end() || block->bytes < best->bytes)) {
        best = block;
      }
    }
    if (best != list.blocks.end()) {
      memory_ = best->memory;
      bytes_ = best->bytes;
      list.bytes -= bytes_;
      list.blocks.erase(best);
      return;
    }
    // None is large enough: give up the largest, so that growing sizes do not pile up.
    if (!list.blocks.empty()) {
      best = list.blocks.begin();
      for (auto block = best; block != list.blocks.end(); ++block) {
        if (block->bytes > best->bytes) best = block;
      }
      release(best->memory, best->bytes);
      list.bytes -= best->bytes;
      list.blocks.erase(best);
    }
  }
  memory_ = allocate(bytes_);
}

Shared::~Shared() {
  FreeList& list = free_list();
  const std::lock_guard<std::mutex> lock(list.mutex);
  if (list.bytes + bytes_ > kMostKept) {
    release(memory_, bytes_);
    return;
  }
  list.blocks.push_back({memory_, bytes_});
  list.bytes += bytes_;
}

Arena& Arena::of_this_thread() {
  static thread_local Arena arena;
  return arena;
}

void Arena::reset(size_t floats) {
  const size_t bytes = floats * sizeof(float) + 16 * kLine;
  if (bytes > bytes_) {
    if (memory_ != nullptr) release(memory_, bytes_);
    memory_ = nullptr;
    bytes_ = 0;
    const size_t rounded = round_up(bytes, kHuge);
    memory_ = static_cast<char*>(allocate(rounded));
    bytes_ = rounded;
  }
  used_ = 0;
}

float* Arena::take(size_t floats) {
  float* piece = reinterpret_cast<float*>(memory_ + used_);
  used_ += round_up(floats * sizeof(float), kLine);
  return piece;
}

Arena::~Arena() {
  if (memory_ != nullptr) release(memory_, bytes_);
}

}  // namespace moejax

extern "C" void moejax_native_scratch(int64_t* held, int64_t* peak) {
  *held = moejax::held;
  *peak = moejax::peak;
}

#include "parallel.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

namespace moejax {
namespace {

struct Job {
  int size;
  const std::function<void(int)>* body;  // lives as long as a call is left to begin
  std::atomic<int> next{0}, done{0};
  std::atomic<bool> out_of_memory{false};
};

void work(Job& job) {
  for (int i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.size;) {
    try {
      (*job.body)(i);
    } catch (const std::bad_alloc&) {
      job.out_of_memory = true;
    }
    if (job.done.fetch_add(1, std::memory_order_acq_rel) + 1 == job.size) job.done.notify_all();
  }
}

}  // namespace

void parallel_for(const Pool& pool, int n, const std::function<void(int)>& body) {
  if (n <= 0) return;
  // Shared, because helpers may start after this function has returned.
  const auto job = std::make_shared<Job>();
  job->size = n;
  job->body = &body;
  for (int helper = 1; helper < std::min(pool.threads, n); helper++) {
    try {
      pool.schedule([job] { work(*job); });
    } catch (...) {
      break;  // to leave here would take `body` from helpers already queued; fewer will do
    }
  }
  work(*job);
  // The last calls end within microseconds of each other: sleeping at once would cost more.
  for (int spin = 0; spin < 2000 && job->done.load(std::memory_order_acquire) < n; spin++) {
    _mm_pause();
  }
  for (int done; (done = job->done.load(std::memory_order_acquire)) < n;) job->done.wait(done);
  if (job->out_of_memory) throw std::bad_alloc();
}

}  // namespace moejax

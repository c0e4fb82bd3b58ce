// Loops on a thread pool that is not ours.
#pragma once
#include <functional>

namespace moejax {

// A pool as this kernel sees it (XLA's own: handlers.cc); the kernel starts no threads.
struct Pool {
  int threads;
  std::function<void(std::function<void()>)> schedule;
};

// Calls `body(i)` for every 0 <= i < n, in any order, on the pool's threads and the caller's.
//
// Returns when all calls have. Never deadlocks, however busy the pool is: the caller works through
// the loop itself and waits only for calls that a helper has begun; helpers never wait. A helper
// that starts late finds nothing left to do.
//
// Raises std::bad_alloc if a call did.
void parallel_for(const Pool& pool, int n, const std::function<void(int)>& body);

}  // namespace moejax

// What XLA calls: checks the shapes of buffers and hands them to the passes. The only file that
// knows of XLA's foreign function interface.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>

#include "passes.h"
#include "scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace moejax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using Widths = ffi::Span<const int64_t>;

Pool pool_of(ffi::ThreadPool& threads) {
  // Without a pool (xla_cpu_multi_thread_eigen=false) there are none: the caller does it all.
  const int size = static_cast<int>(std::max<int64_t>(1, threads.num_threads()));
  return {size, [&threads](std::function<void()> task) { threads.Schedule(std::move(task)); }};
}

// The problem of a call, or what is wrong with its buffers.
ffi::ErrorOr<Problem> problem_of(const Floats& x, const Ints& expert, const Floats& weight,
                                 const ffi::RemainingArgs& weights, const Widths& widths,
                                 int64_t activation) {
  const auto wrong = [](const char* what) {
    return ffi::Unexpected(ffi::Error::InvalidArgument(what));
  };
  if (activation < kSwiglu || activation > kRelu2) return wrong("unknown activation");
  if (x.dimensions().size() != 2 || expert.dimensions().size() != 2) {
    return wrong("tokens and experts must have two axes");
  }
  if (x.dimensions()[1] == 0) return wrong("tokens must have at least one number");
  Problem problem{};
  problem.tokens = x.dimensions()[0];
  problem.dim = x.dimensions()[1];
  problem.slots = expert.dimensions()[1];
  problem.experts = static_cast<int>(widths.size());
  problem.widths = widths.begin();
  problem.activation = static_cast<Activation>(activation);
  problem.x = x.typed_data();
  problem.expert = expert.typed_data();
  problem.weight = weight.typed_data();
  if (expert.dimensions()[0] != problem.tokens || weight.element_count() != expert.element_count()) {
    return wrong("experts and combine weights must have a row for each token");
  }
  if (expert.element_count() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return wrong("more assignments than 2**31 - 1");
  }
  int64_t units = 0;
  for (const int64_t width : widths) units += width;
  if (weights.size() != static_cast<size_t>(problem.into() + 1)) {
    return wrong("one array of weights for each projection");
  }
  for (int i = 0; i <= problem.into(); i++) {
    const auto array = weights.get<Floats>(i);
    if (array.has_error()) return ffi::Unexpected(array.error());
    if (array->element_count() != static_cast<size_t>(units * problem.dim)) {
      return wrong("weights must have one row of D numbers for each hidden unit");
    }
    problem.weights[i] = array->typed_data();
  }
  return problem;
}

// Whether a result, or a gradient that comes in, has the size of what it belongs to.
template <class A, class B>
bool alike(const A& a, const B& b) {
  return a.element_count() == b.element_count();
}

template <class Run>
ffi::Error guarded(const Run& run) {
  try {
    run();
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "native expert kernel: no memory for its scratch");
  }
}

ffi::Error run_forward(ffi::ThreadPool threads, Floats x, Ints expert, Floats weight,
                       ffi::RemainingArgs weights, FloatsOut y, FloatsOut saved, Widths widths,
                       int64_t activation) {
  const auto problem = problem_of(x, expert, weight, weights, widths, activation);
  if (problem.has_error()) return problem.error();
  if (!alike(*y, x)) return ffi::Error::InvalidArgument("results must have the shape of tokens");
  return guarded([&] {
    forward(*problem, saved->element_count(), pool_of(threads), saved->typed_data(),
            y->typed_data());
  });
}

ffi::Error run_backward(ffi::ThreadPool threads, Floats x, Ints expert, Floats weight, Floats saved,
                        Floats dy, ffi::RemainingArgs weights, FloatsOut dx, FloatsOut dweight,
                        ffi::RemainingRets dweights, Widths widths, int64_t activation) {
  const auto problem = problem_of(x, expert, weight, weights, widths, activation);
  if (problem.has_error()) return problem.error();
  const auto wrong = [] {
    return ffi::Error::InvalidArgument("gradients must have the shapes of what they belong to");
  };
  if (!alike(dy, x) || !alike(*dx, x) || !alike(*dweight, weight)) return wrong();
  if (dweights.size() != weights.size()) return wrong();
  float* out[3] = {};
  for (int i = 0; i <= problem->into(); i++) {
    auto array = dweights.get<Floats>(i);
    if (array.has_error()) return array.error();
    if (!alike(**array, *weights.get<Floats>(i))) return wrong();
    out[i] = (*array)->typed_data();
  }
  return guarded([&] {
    backward(*problem, saved.element_count(), pool_of(threads), saved.typed_data(),
             dy.typed_data(), dx->typed_data(), dweight->typed_data(), out);
  });
}

}  // namespace
}  // namespace moejax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_native_forward, moejax::run_forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<moejax::Floats>()
                                  .Arg<moejax::Ints>()
                                  .Arg<moejax::Floats>()
                                  .RemainingArgs()
                                  .Ret<moejax::Floats>()
                                  .Ret<moejax::Floats>()
                                  .Attr<moejax::Widths>("widths")
                                  .Attr<int64_t>("activation"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moejax_native_backward, moejax::run_backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<moejax::Floats>()
                                  .Arg<moejax::Ints>()
                                  .Arg<moejax::Floats>()
                                  .Arg<moejax::Floats>()
                                  .Arg<moejax::Floats>()
                                  .RemainingArgs()
                                  .Ret<moejax::Floats>()
                                  .Ret<moejax::Floats>()
                                  .RemainingRets()
                                  .Attr<moejax::Widths>("widths")
                                  .Attr<int64_t>("activation"));

// The interface that this library was compiled for; library.py asks before it registers anything.
extern "C" int32_t moejax_native_api() { return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR; }

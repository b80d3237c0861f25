// Batches across callers: many threads that each bring a text or a few share runs of one Embedder. Part of the library mra_serving.
//
//   auto batcher = mra::serving::Batcher::start(embedder);          // a std::shared_ptr<const Embedder>
//   auto asked = batcher->submit({{101, 7592, 102}});               // from any thread
//   if (!asked) return busy(asked.status());                        // Code::kFull: ask again later, or elsewhere
//   mra::serving::Result<mra::serving::Matrix> vectors = asked->vectors.get();
//
// As everywhere in the library: no function throws, and whatever goes wrong is a Status.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <vector>

#include "mra/serving.h"

namespace mra::serving {

struct BatcherOptions {
  // Texts that may wait for a run. A request that would be more is refused with Code::kFull.
  std::size_t max_queue = 4096;
  // How long a text may wait for others of as many blocks, while a run is free. 0: it does not wait; what comes while all runs are
  // under way is batched all the same.
  std::chrono::microseconds max_delay{0};
  // Most tokens of one batch, padding included. 0: what the Embedder runs at once, which is also the most.
  std::int64_t max_batch_tokens = 0;
  // Batches at the same time. 0: Info::parallel_runs.
  int runs = 0;
};

struct RequestOptions {
  // From then on the answer is Code::kDeadline. A text that waits is not run any more, one that runs is not waited for.
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

// Counts since the batcher was started, and what there is now.
struct BatcherCounters {
  std::uint64_t accepted = 0;     // requests, each of which is answered once: with vectors, or as the next four count
  std::uint64_t cancelled = 0;    // by cancel()
  std::uint64_t expired = 0;      // that met their deadline
  std::uint64_t abandoned = 0;    // that waited when the batcher was stopped without draining
  std::uint64_t failed = 0;       // that the runtime could not run
  std::uint64_t refused = 0;      // requests that were not accepted since the queue was full
  std::uint64_t batches = 0;      // that were run
  std::uint64_t texts = 0;        // in them
  double wait_seconds = 0;        // that these texts waited, all together
  double run_seconds = 0;         // that the batches took, all together
  std::size_t waiting_texts = 0;  // now
  std::size_t open_requests = 0;  // now: accepted and not answered
};

// Texts with the same number of blocks share batches, so that no vector depends on the other texts, as with Embedder::embed(). The
// text that has waited longest is always in the next batch: neither long nor short texts are passed over for ever. A request of many
// texts is spread over the runs, and its later texts stand where they would if they had come as fast as they can be run: a small
// request does not wait until a large one is done.
//
// All but assigning, moving from and destroying may be called by any number of threads at once.
class MRA_SERVING_API Batcher {
 public:
  // Is called once for each accepted request, by a thread of the batcher, or by the one that calls submit(), cancel() or stop(). It
  // should be short, as a run waits for it, and must not destroy the Batcher.
  using Callback = std::function<void(Result<Matrix>)>;

  struct Asked {
    std::uint64_t id = 0;  // for cancel()
    std::future<Result<Matrix>> vectors;
  };

  static Result<Batcher> start(std::shared_ptr<const Embedder> embedder, const BatcherOptions& options = {}) noexcept;

  Batcher(Batcher&&) noexcept;
  Batcher& operator=(Batcher&&) noexcept;
  ~Batcher();  // stop(false)

  // One vector a text, as Embedder::embed(). Texts that cannot be run are refused here, alone: Code::kInput. Code::kFull: too many
  // texts wait. Code::kStopped: after stop(). Then there is no answer to wait for.
  Result<Asked> submit(std::vector<std::vector<std::int64_t>> texts, const RequestOptions& options = {}) noexcept;

  // The same with a callback; gives the id for cancel().
  Result<std::uint64_t> submit(std::vector<std::vector<std::int64_t>> texts, Callback done,
                               const RequestOptions& options = {}) noexcept;

  // Answers a request with Code::kCancelled. False where it is answered already.
  bool cancel(std::uint64_t id) noexcept;

  // Accepts nothing more, and comes back when every accepted request is answered: with its vectors, or, where `drain` is false, those
  // that wait with Code::kStopped. Called in a callback it does not wait.
  void stop(bool drain = true) noexcept;

  BatcherCounters counters() const noexcept;

 private:
  class Impl;
  explicit Batcher(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mra::serving

// The batcher without the Embedder: a queue of texts, the threads that run batches of it, and one that minds the deadlines.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mra/batcher.h"

namespace mra::serving::detail {

// What a model can run.
struct ModelShape {
  std::int64_t length_step = 1;
  std::int64_t max_seq_len = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_batch_tokens = 0;
  std::int64_t max_batch_texts = 0;
  std::size_t dimension = 0;
  int parallel_runs = 1;
};

// Runs texts, ids one after the other, and writes their vectors [texts, dimension]; called by several threads at once.
using RunTexts = std::function<Status(const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out)>;

class BatchQueue {
 public:
  using Clock = std::chrono::steady_clock;
  using Callback = std::function<void(Result<Matrix>)>;
  using Texts = std::vector<std::vector<std::int64_t>>;

  // Throws Failure.
  BatchQueue(const ModelShape& shape, RunTexts run, const BatcherOptions& options);
  ~BatchQueue();

  // The id of the request. Throws Failure; then `done` is never called.
  std::uint64_t submit(Texts texts, Callback done, const RequestOptions& options);
  bool cancel(std::uint64_t id) noexcept;
  void stop(bool drain) noexcept;
  BatcherCounters counters() const noexcept;

 private:
  struct Request;
  struct Item {
    std::shared_ptr<Request> request;
    std::size_t row = 0;
  };
  // Texts with one number of blocks, in the order in which they are run.
  using Group = std::multimap<Clock::time_point, Item>;

  struct Request {
    std::uint64_t id = 0;
    Clock::time_point arrived, deadline = Clock::time_point::max();
    Texts texts;
    Matrix vectors;
    Callback done;
    Status status;
    std::size_t left = 0;                                    // texts that are not run yet
    std::vector<std::pair<Group*, Group::iterator>> places;  // of each text; without a group where it does not wait
    std::shared_ptr<Request> next;                           // of those to answer
  };

  // What one thread needs to run a batch, made once.
  struct Batch {
    std::vector<Item> items;
    std::vector<std::int64_t> ids;
    std::vector<std::size_t> lengths;
    std::vector<float> vectors;
    std::vector<Status> statuses;
  };

  std::int64_t blocks_of(std::size_t length) const noexcept;
  std::size_t most_texts(std::int64_t blocks) const noexcept;
  void check(const Texts& texts) const;
  Batch make_batch() const;
  void work(Batch* batch) noexcept;
  void mind_deadlines() noexcept;
  Group* choose(Clock::time_point now, Clock::time_point* wake) noexcept;
  void take(Group* group, Batch* batch) noexcept;
  void run(Batch* batch) noexcept;
  void settle(Batch* batch, Clock::duration took, std::shared_ptr<Request>* answers) noexcept;
  void close(const std::shared_ptr<Request>& request, std::shared_ptr<Request>* answers) noexcept;
  static void answer(std::shared_ptr<Request> answers) noexcept;
  bool is_own_thread() const noexcept;

  ModelShape shape_;
  RunTexts run_;
  BatcherOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable work_, deadline_;
  std::map<std::int64_t, Group> groups_;  // by the number of blocks
  std::unordered_map<std::uint64_t, std::shared_ptr<Request>> open_;
  std::set<std::pair<Clock::time_point, std::uint64_t>> deadlines_;
  BatcherCounters counters_;
  std::uint64_t next_id_ = 1;
  double seconds_per_token_ = 0;  // of a run, as it was of late
  bool is_stopping_ = false;
  int working_ = 0;  // threads that run batches

  std::vector<Batch> batches_;  // of each of these
  std::mutex join_mutex_;
  std::vector<std::thread> threads_;
  std::vector<std::thread::id> own_;  // written before any thread asks
};

}  // namespace mra::serving::detail

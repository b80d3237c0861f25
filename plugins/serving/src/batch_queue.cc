// The queue of the batcher: what waits, in which order it is run, and that every request is answered once.
#include "batch_queue.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "check_ids.h"
#include "failure.h"

namespace mra::serving::detail {
namespace {

constexpr int kMaxRuns = 1024;
constexpr double kNewest = 0.2;  // how much the last batch counts in what a token takes

// A Status that can be made where nothing may be thrown: without its message where there is no memory for it.
Status said(Code code, const char* message) noexcept {
  try {
    return {code, message};
  } catch (...) {
    Status status;
    status.code = code;
    return status;
  }
}

double seconds(BatchQueue::Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

template <typename Number>
void check_range(const char* name, Number value, Number low, Number high) {
  if (value < low || value > high)
    fail(Code::kInput, std::string(name) + "=" + std::to_string(value) + " must be from " + std::to_string(low) + " to " +
                           std::to_string(high) + ".");
}

}  // namespace

BatchQueue::BatchQueue(const ModelShape& shape, RunTexts run, const BatcherOptions& options)
    : shape_(shape), run_(std::move(run)), options_(options) {
  check_range<std::uint64_t>("max_queue", options.max_queue, 1, std::uint64_t{1} << 32);
  check_range<std::int64_t>("max_delay", options.max_delay.count(), 0, 60'000'000);
  check_range("runs", options.runs, 0, kMaxRuns);
  if (options_.max_batch_tokens == 0) options_.max_batch_tokens = shape_.max_batch_tokens;
  check_range("max_batch_tokens", options_.max_batch_tokens, shape_.max_seq_len, shape_.max_batch_tokens);
  if (options_.runs == 0) options_.runs = std::max(1, shape_.parallel_runs);
  for (int i = 0; i < options_.runs; ++i) batches_.push_back(make_batch());
  try {
    const std::lock_guard<std::mutex> lock(mutex_);  // none begins before all are there
    threads_.reserve(batches_.size() + 1);
    own_.reserve(batches_.size() + 1);
    for (Batch& batch : batches_) {
      threads_.emplace_back([this, &batch] { work(&batch); });
      ++working_;
    }
    threads_.emplace_back([this] { mind_deadlines(); });
    for (const std::thread& thread : threads_) own_.push_back(thread.get_id());
  } catch (const std::exception& error) {
    stop(false);
    fail(Code::kInternal, std::string("The batcher's threads cannot be started: ") + error.what());
  }
}

BatchQueue::~BatchQueue() { stop(false); }

std::int64_t BatchQueue::blocks_of(std::size_t length) const noexcept {
  return (static_cast<std::int64_t>(length) + shape_.length_step - 1) / shape_.length_step;
}

// Texts of one batch, were each as long as its blocks.
std::size_t BatchQueue::most_texts(std::int64_t blocks) const noexcept {
  const std::int64_t width = std::min(blocks * shape_.length_step, shape_.max_seq_len);
  return static_cast<std::size_t>(std::max<std::int64_t>(1, std::min(shape_.max_batch_texts, options_.max_batch_tokens / width)));
}

BatchQueue::Batch BatchQueue::make_batch() const {
  Batch batch;
  const std::size_t most = most_texts(1);
  batch.items.reserve(most);
  batch.ids.reserve(static_cast<std::size_t>(options_.max_batch_tokens));
  batch.lengths.reserve(most);
  batch.vectors.resize(most * shape_.dimension);
  batch.statuses.resize(most);
  return batch;
}

std::uint64_t BatchQueue::submit(Texts texts, Callback done, const RequestOptions& options) {
  for (std::size_t row = 0; row < texts.size(); ++row)
    check_ids(row, texts[row].data(), texts[row].size(), shape_.max_seq_len, shape_.vocab_size);
  if (texts.size() > options_.max_queue)
    fail(Code::kInput, std::to_string(texts.size()) + " texts are more than max_queue=" + std::to_string(options_.max_queue) +
                           " can hold. Give fewer at a time.");
  auto request = std::make_shared<Request>();
  request->arrived = Clock::now();
  if (options.deadline) request->deadline = *options.deadline;
  if (request->deadline <= request->arrived) fail(Code::kDeadline, "The request's deadline had passed when it came.");
  request->left = texts.size();
  request->texts = std::move(texts);
  request->done = std::move(done);
  request->vectors.rows = request->left;
  request->vectors.columns = shape_.dimension;
  request->vectors.values.resize(request->left * shape_.dimension);
  request->places.resize(request->left);
  const bool is_empty = request->left == 0, has_deadline = request->deadline != Clock::time_point::max();
  std::uint64_t id = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_stopping_) fail(Code::kStopped, "The batcher was stopped.");
    if (counters_.waiting_texts + request->left > options_.max_queue) {
      ++counters_.refused;
      fail(Code::kFull, std::to_string(counters_.waiting_texts) +
                            " texts wait, and max_queue=" + std::to_string(options_.max_queue) + " leaves no room for " +
                            std::to_string(request->left) + " more. Ask again later.");
    }
    id = request->id = next_id_;
    if (!is_empty) {
      try {
        open_.emplace(id, request);
        if (has_deadline) deadlines_.emplace(request->deadline, id);
        double tokens = 0;
        for (std::size_t row = 0; row < request->texts.size(); ++row) {
          // A large request's texts stand where they would if they came as fast as they can be run.
          const auto later = std::chrono::duration<double>(tokens * seconds_per_token_ / options_.runs);
          const std::int64_t blocks = blocks_of(request->texts[row].size());
          Group& group = groups_[blocks];
          request->places[row] = {
              &group, group.emplace(request->arrived + std::chrono::duration_cast<Clock::duration>(later), Item{request, row})};
          ++counters_.waiting_texts;
          tokens += static_cast<double>(blocks * shape_.length_step);
        }
      } catch (...) {  // nothing of it stays
        std::shared_ptr<Request> answers;
        close(request, &answers);
        throw;
      }
    }
    ++next_id_;
    ++counters_.accepted;
  }
  if (is_empty) {
    answer(request);
    return id;
  }
  if (request->texts.size() > 1)
    work_.notify_all();
  else
    work_.notify_one();
  if (has_deadline) deadline_.notify_one();
  return id;
}

bool BatchQueue::cancel(std::uint64_t id) noexcept {
  std::shared_ptr<Request> answers;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = open_.find(id);
    if (found == open_.end()) return false;
    ++counters_.cancelled;
    found->second->status = said(Code::kCancelled, "The request was cancelled.");
    close(std::shared_ptr<Request>(found->second), &answers);
  }
  answer(std::move(answers));
  return true;
}

void BatchQueue::stop(bool drain) noexcept {
  std::shared_ptr<Request> answers;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_ = true;
    if (!drain)
      for (auto entry = open_.begin(); entry != open_.end();) {
        const std::shared_ptr<Request> request = (entry++)->second;
        const bool waits =
            std::any_of(request->places.begin(), request->places.end(), [](const auto& p) { return p.first != nullptr; });
        if (!waits) continue;  // all of it runs: its answer is near
        ++counters_.abandoned;
        request->status = said(Code::kStopped, "The batcher was stopped before the request was run.");
        close(request, &answers);
      }
  }
  answer(std::move(answers));
  work_.notify_all();
  deadline_.notify_all();
  if (is_own_thread()) return;
  const std::lock_guard<std::mutex> lock(join_mutex_);
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

BatcherCounters BatchQueue::counters() const noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  BatcherCounters out = counters_;
  out.open_requests = open_.size();
  return out;
}

bool BatchQueue::is_own_thread() const noexcept {
  return std::find(own_.begin(), own_.end(), std::this_thread::get_id()) != own_.end();
}

// Takes a request out of everything; it is then answered without the lock. With the lock held.
void BatchQueue::close(const std::shared_ptr<Request>& request, std::shared_ptr<Request>* answers) noexcept {
  for (auto& [group, place] : request->places) {
    if (group == nullptr) continue;
    group->erase(place);
    group = nullptr;
    --counters_.waiting_texts;
  }
  deadlines_.erase({request->deadline, request->id});
  request->next = std::move(*answers);
  *answers = request;
  open_.erase(request->id);
}

// Answers requests that close() took out. A callback that throws has nobody to tell.
void BatchQueue::answer(std::shared_ptr<Request> answers) noexcept {
  while (answers != nullptr) {
    const std::shared_ptr<Request> request = std::move(answers);
    answers = std::move(request->next);
    try {
      if (request->status.ok())
        request->done(Result<Matrix>(std::move(request->vectors)));
      else
        request->done(Result<Matrix>(std::move(request->status)));
      request->done = nullptr;
    } catch (...) {
    }
  }
}

// The group whose first text has waited longest, of those that may run now; else when to look again. With the lock held.
BatchQueue::Group* BatchQueue::choose(Clock::time_point now, Clock::time_point* wake) noexcept {
  Group* best = nullptr;
  *wake = Clock::time_point::max();
  for (auto& [blocks, group] : groups_) {
    if (group.empty()) continue;
    const auto first = group.begin();
    const Clock::time_point due = first->second.request->arrived + options_.max_delay;
    if (due > now && !is_stopping_ && group.size() < most_texts(blocks))
      *wake = std::min(*wake, due);
    else if (best == nullptr || first->first < best->begin()->first)
      best = &group;
  }
  return best;
}

// With the lock held.
void BatchQueue::take(Group* group, Batch* batch) noexcept {
  const Clock::time_point now = Clock::now();
  const std::int64_t blocks = blocks_of(group->begin()->second.request->texts[group->begin()->second.row].size());
  const std::size_t most = std::min(group->size(), most_texts(blocks));
  batch->items.clear();
  for (std::size_t i = 0; i < most; ++i) {
    const auto first = group->begin();
    first->second.request->places[first->second.row].first = nullptr;
    counters_.wait_seconds += seconds(now - first->second.request->arrived);
    batch->items.push_back(std::move(first->second));  // within the capacity that was reserved
    group->erase(first);
    --counters_.waiting_texts;
  }
}

// Texts that cannot be run together are run alone, so that one cannot spoil the others.
void BatchQueue::run(Batch* batch) noexcept {
  batch->ids.clear();
  batch->lengths.clear();
  for (const Item& item : batch->items) {
    const std::vector<std::int64_t>& text = item.request->texts[item.row];
    batch->ids.insert(batch->ids.end(), text.begin(), text.end());  // within the capacity, as the lengths
    batch->lengths.push_back(text.size());
  }
  const auto run = [&](const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out) {
    return guarded([&] {
      if (Status status = run_(ids, lengths, texts, out); !status.ok()) throw Failure{std::move(status)};
    });
  };
  Status together = run(batch->ids.data(), batch->lengths.data(), batch->items.size(), batch->vectors.data());
  if (together.ok() || batch->items.size() == 1) {
    for (std::size_t i = 0; i < batch->items.size(); ++i) batch->statuses[i] = {};
    batch->statuses[0] = std::move(together);
    return;
  }
  const std::int64_t* ids = batch->ids.data();
  for (std::size_t i = 0; i < batch->items.size(); ids += batch->lengths[i++])
    batch->statuses[i] = run(ids, &batch->lengths[i], 1, batch->vectors.data() + i * shape_.dimension);
}

// With the lock held.
void BatchQueue::settle(Batch* batch, Clock::duration took, std::shared_ptr<Request>* answers) noexcept {
  double tokens = 0;
  for (std::size_t i = 0; i < batch->items.size(); ++i) {
    const Item& item = batch->items[i];
    Request& request = *item.request;
    tokens += static_cast<double>(blocks_of(batch->lengths[i]) * shape_.length_step);
    const auto found = open_.find(request.id);
    if (found == open_.end()) continue;  // it was answered meanwhile
    if (!batch->statuses[i].ok()) {
      ++counters_.failed;
      request.status = std::move(batch->statuses[i]);
      close(item.request, answers);
      continue;
    }
    std::memcpy(request.vectors.values.data() + item.row * shape_.dimension, batch->vectors.data() + i * shape_.dimension,
                shape_.dimension * sizeof(float));
    if (--request.left == 0) close(item.request, answers);
  }
  ++counters_.batches;
  counters_.texts += batch->items.size();
  counters_.run_seconds += seconds(took);
  const double newest = seconds(took) / tokens;
  seconds_per_token_ = seconds_per_token_ == 0 ? newest : (1 - kNewest) * seconds_per_token_ + kNewest * newest;
  batch->items.clear();
}

void BatchQueue::work(Batch* batch) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    Clock::time_point wake;
    Group* group = choose(Clock::now(), &wake);
    if (group == nullptr) {
      if (is_stopping_ && counters_.waiting_texts == 0) break;
      if (wake == Clock::time_point::max())
        work_.wait(lock);
      else
        work_.wait_until(lock, wake);
      continue;
    }
    take(group, batch);
    const bool is_more = counters_.waiting_texts > 0;
    lock.unlock();
    if (is_more) work_.notify_one();  // there is something to run, or a delay to mind, meanwhile
    const Clock::time_point began = Clock::now();
    run(batch);
    const Clock::duration took = Clock::now() - began;
    std::shared_ptr<Request> answers;
    lock.lock();
    settle(batch, took, &answers);
    lock.unlock();
    answer(std::move(answers));
    lock.lock();
  }
  if (--working_ == 0) deadline_.notify_all();
}

// Until all that was accepted is answered: what runs has a deadline too.
void BatchQueue::mind_deadlines() noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_stopping_ || working_ > 0) {
    if (deadlines_.empty()) {
      deadline_.wait(lock);
      continue;
    }
    const auto [due, id] = *deadlines_.begin();
    if (due > Clock::now()) {
      deadline_.wait_until(lock, due);
      continue;
    }
    const std::shared_ptr<Request> request = open_.find(id)->second;
    ++counters_.expired;
    request->status = said(Code::kDeadline, "The request's deadline passed before it was answered.");
    std::shared_ptr<Request> answers;
    close(request, &answers);
    lock.unlock();
    answer(std::move(answers));
    lock.lock();
  }
}

}  // namespace mra::serving::detail

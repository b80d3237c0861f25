// The batcher's queue over a model that is made up: each scenario ends the process where something is not as it must be. One file and
// no library of others, so that ThreadSanitizer sees all of it.
//
//   batch_queue_test SCENARIO...
#include "src/batch_queue.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "src/failure.h"

namespace {

using namespace mra::serving;
using detail::BatchQueue;
using Clock = std::chrono::steady_clock;
using Texts = std::vector<std::vector<std::int64_t>>;
using std::chrono::milliseconds;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::fflush(stderr);                                                         \
      std::_Exit(1);                                                               \
    }                                                                              \
  } while (false)

constexpr std::int64_t kStep = 8, kLongest = 64, kVocabulary = 100;
constexpr std::size_t kDimension = 3;
constexpr std::int64_t kPoison = 99;  // a text with this id cannot be run

float number(const std::vector<std::int64_t>& text, std::size_t d) {
  float sum = static_cast<float>(d);
  for (std::size_t i = 0; i < text.size(); ++i) sum += static_cast<float>(text[i]) * static_cast<float>(i + 1);
  return sum;
}

std::int64_t blocks_of(std::size_t length) { return (static_cast<std::int64_t>(length) + kStep - 1) / kStep; }

// The model: it can be held, and says what it was given.
class Model {
 public:
  Status run(const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out) {
    std::vector<std::vector<std::int64_t>> given;
    for (std::size_t i = 0; i < texts; ids += lengths[i++]) given.emplace_back(ids, ids + lengths[i]);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      for (const auto& text : given) CHECK(blocks_of(text.size()) == blocks_of(given[0].size()));
      batches_.push_back(given);
      began_.notify_all();
      open_.wait(lock, [&] { return !is_held_; });
    }
    if (pause_.count() > 0) std::this_thread::sleep_for(pause_);
    for (std::size_t i = 0; i < texts; ++i) {
      if (std::find(given[i].begin(), given[i].end(), kPoison) != given[i].end()) return {Code::kInternal, "poison"};
      for (std::size_t d = 0; d < kDimension; ++d) out[i * kDimension + d] = number(given[i], d);
    }
    return {};
  }
  void hold() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_held_ = true;
  }
  void release() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_held_ = false;
    }
    open_.notify_all();
  }
  void wait_for_batches(std::size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    began_.wait(lock, [&] { return batches_.size() >= count; });
  }
  std::vector<Texts> batches() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return batches_;
  }
  void pause(milliseconds pause) { pause_ = pause; }

 private:
  std::mutex mutex_;
  std::condition_variable open_, began_;
  std::vector<Texts> batches_;
  bool is_held_ = false;
  milliseconds pause_{0};
};

BatcherOptions options_of(std::size_t max_queue, int runs, std::int64_t tokens = 64) {
  BatcherOptions options;
  options.max_queue = max_queue;
  options.runs = runs;
  options.max_batch_tokens = tokens;
  return options;
}

struct Fixture {
  explicit Fixture(const BatcherOptions& options)
      : queue(
            {kStep, kLongest, kVocabulary, 256, 1000, kDimension, 2},
            [this](const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out) {
              return model.run(ids, lengths, texts, out);
            },
            options) {}
  Model model;
  BatchQueue queue;
};

// A request's answer, of which there must be one.
struct Answer {
  std::mutex mutex;
  std::condition_variable came;
  int times = 0;
  Status status;
  Matrix vectors;

  Status wait() {
    std::unique_lock<std::mutex> lock(mutex);
    came.wait(lock, [&] { return times > 0; });
    return status;
  }
};

using Answered = std::shared_ptr<Answer>;

BatchQueue::Callback into(const Answered& answer) {
  return [answer](Result<Matrix> vectors) {
    const std::lock_guard<std::mutex> lock(answer->mutex);
    CHECK(++answer->times == 1);
    answer->status = vectors.status();
    if (vectors) answer->vectors = std::move(*vectors);
    answer->came.notify_all();
  };
}

Answered ask(Fixture& at, Texts texts, std::uint64_t* id = nullptr, const RequestOptions& options = {}) {
  auto answer = std::make_shared<Answer>();
  const std::uint64_t number = at.queue.submit(std::move(texts), into(answer), options);
  if (id != nullptr) *id = number;
  return answer;
}

Status refused(Fixture& at, Texts texts, const RequestOptions& options = {}) {
  return guarded([&] { ask(at, std::move(texts), nullptr, options); });
}

RequestOptions within(milliseconds time) {
  RequestOptions options;
  options.deadline = Clock::now() + time;
  return options;
}

void check_vectors(const Answered& answer, const Texts& texts) {
  CHECK(answer->wait().ok());
  CHECK(answer->vectors.rows == texts.size() && answer->vectors.columns == kDimension);
  for (std::size_t row = 0; row < texts.size(); ++row)
    for (std::size_t d = 0; d < kDimension; ++d) CHECK(answer->vectors.row(row)[d] == number(texts[row], d));
}

Texts random_texts(std::mt19937& draw, std::size_t most) {
  Texts texts(1 + draw() % most);
  for (auto& text : texts) {
    text.resize(1 + draw() % kLongest);
    for (auto& id : text) id = static_cast<std::int64_t>(draw() % (kVocabulary - 1));
  }
  return texts;
}

void many_callers() {
  Fixture at(options_of(100000, 3));
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 8; ++i)
    threads.emplace_back([&at, i] {
      std::mt19937 draw(i);
      for (int round = 0; round < 60; ++round) {
        const Texts texts = random_texts(draw, round % 10 == 0 ? 40 : 3);
        check_vectors(ask(at, texts), texts);
      }
    });
  for (std::thread& thread : threads) thread.join();
  std::size_t texts = 0;
  for (const Texts& batch : at.model.batches()) {
    texts += batch.size();
    CHECK(static_cast<std::int64_t>(batch.size()) * blocks_of(batch[0].size()) * kStep <= std::max<std::int64_t>(64, kLongest));
  }
  const BatcherCounters counters = at.queue.counters();
  CHECK(counters.accepted == 8 * 60 && counters.texts == texts && counters.batches == at.model.batches().size());
  CHECK(counters.waiting_texts == 0 && counters.open_requests == 0 && counters.failed == 0);
  CHECK(at.model.batches().size() < texts);
  check_vectors(ask(at, {}), {});
}

void full() {
  Fixture at(options_of(4, 1));
  at.model.hold();
  std::vector<Answered> answers{ask(at, {{1}})};
  at.model.wait_for_batches(1);
  for (int i = 0; i < 2; ++i) answers.push_back(ask(at, {{2}, {3}}));
  const Status status = refused(at, {{4}});
  CHECK(status.code == Code::kFull && status.message.find("4 texts wait, and max_queue=4") == 0);
  CHECK(refused(at, Texts(5, {1})).code == Code::kInput);
  CHECK(at.queue.counters().refused == 1 && at.queue.counters().waiting_texts == 4);
  std::uint64_t id = 0;
  CHECK(at.queue.cancel(3));  // room again
  answers.push_back(ask(at, {{5}, {6}}, &id));
  CHECK(answers[2]->wait().code == Code::kCancelled);
  at.model.release();
  check_vectors(answers[3], {{5}, {6}});
  check_vectors(answers[0], {{1}});
  CHECK(!at.queue.cancel(id) && !at.queue.cancel(99));
}

void bad_texts() {
  Fixture at(options_of(10, 1));
  CHECK(refused(at, {{1}, {}}).message.find("Text 1 has no tokens") == 0);
  CHECK(refused(at, {std::vector<std::int64_t>(65, 1)}).message.find("Text 0 has 65 tokens, more than the 64") == 0);
  CHECK(refused(at, {{1, -1}}).message.find("Text 0 has the token id -1 at place 1") == 0);
  CHECK(refused(at, {{100}}).code == Code::kInput);
  CHECK(refused(at, {{1}}, within(milliseconds(-1))).code == Code::kDeadline);
  CHECK(at.queue.counters().accepted == 0);
  for (const auto& [change, what] : std::vector<std::pair<std::function<void(BatcherOptions*)>, const char*>>{
           {[](BatcherOptions* o) { o->max_queue = 0; }, "max_queue=0"},
           {[](BatcherOptions* o) { o->runs = -1; }, "runs=-1"},
           {[](BatcherOptions* o) { o->max_batch_tokens = 63; }, "max_batch_tokens=63 must be from 64 to 256"},
           {[](BatcherOptions* o) { o->max_delay = std::chrono::microseconds(-1); }, "max_delay=-1"}}) {
    BatcherOptions options;
    change(&options);
    const Status status = guarded([&options = options] { Fixture wrong(options); });
    CHECK(status.code == Code::kInput && status.message.find(what) == 0);
  }
}

void deadlines() {
  Fixture at(options_of(100, 1));
  at.model.hold();
  const Answered running = ask(at, {{1}}, nullptr, within(milliseconds(30)));
  at.model.wait_for_batches(1);
  const Answered waiting = ask(at, {{2}, {3}}, nullptr, within(milliseconds(20)));
  const Answered patient = ask(at, {{4}}, nullptr, within(milliseconds(3'600'000)));
  CHECK(waiting->wait().code == Code::kDeadline);  // while the model does not move
  CHECK(running->wait().code == Code::kDeadline);
  CHECK(at.queue.counters().expired == 2 && at.queue.counters().waiting_texts == 1);
  const Answered late = ask(at, {{5}}, nullptr, within(milliseconds(60)));
  std::thread stopping([&] { at.queue.stop(true); });
  while (refused(at, {}).code != Code::kStopped) std::this_thread::yield();
  CHECK(late->wait().code == Code::kDeadline);  // while it is stopped, too
  at.model.release();
  check_vectors(patient, {{4}});
  stopping.join();
  CHECK(at.model.batches().size() == 2);  // what had expired was not run
}

void poison() {
  Fixture at(options_of(100, 1));
  at.model.hold();
  const Answered first = ask(at, {{1}});
  at.model.wait_for_batches(1);
  const Answered good = ask(at, {{2}}), bad = ask(at, {{3}, {kPoison}, {4}}), other = ask(at, {{5}});
  at.model.release();
  CHECK(bad->wait().code == Code::kInternal && bad->wait().message == "poison");
  check_vectors(good, {{2}});
  check_vectors(other, {{5}});
  check_vectors(first, {{1}});
  CHECK(at.queue.counters().failed == 1);
}

void delay() {
  BatcherOptions options = options_of(100, 2, 64);  // batches of 4 where texts have two blocks
  options.max_delay = std::chrono::seconds(50);
  Fixture at(options);
  const std::vector<std::int64_t> text(9, 1);
  std::vector<Answered> answers;
  for (int i = 0; i < 3; ++i) answers.push_back(ask(at, {text}));
  std::this_thread::sleep_for(milliseconds(20));
  CHECK(at.model.batches().empty());
  answers.push_back(ask(at, {text}));  // full: it does not wait
  for (const Answered& answer : answers) check_vectors(answer, {text});
  CHECK(at.model.batches().size() == 1 && at.model.batches()[0].size() == 4);
  const Answered last = ask(at, {text});
  at.queue.stop(true);  // nor where it is to end
  check_vectors(last, {text});
}

void due_after_delay() {
  BatcherOptions options = options_of(100, 2, 64);
  options.max_delay = std::chrono::milliseconds(5);
  Fixture at(options);
  for (int i = 0; i < 5; ++i) check_vectors(ask(at, {{1}, {2}}), {{1}, {2}});
}

// Of a steady stream of short texts none passes a long one by for ever, nor the other way round.
void neither_long_nor_short_starve() {
  for (const std::size_t steady : {std::size_t{1}, std::size_t{60}}) {
    Fixture at(options_of(1000, 1));
    std::atomic<bool> is_over{false};
    const std::vector<std::int64_t> common(steady, 1), rare(steady == 1 ? 60 : 1, 2);
    std::function<void()> again = [&] {
      if (is_over) return;
      at.queue.submit({common}, [&](Result<Matrix>) { again(); }, {});
    };
    at.model.hold();
    for (int i = 0; i < 30; ++i) again();  // 30 requests, each of which is followed by another one
    at.model.wait_for_batches(1);
    const Answered answer = ask(at, {rare});
    at.model.release();
    check_vectors(answer, {rare});
    is_over = true;
    at.queue.stop(true);
    const std::vector<Texts> batches = at.model.batches();
    const auto place = std::find_if(batches.begin(), batches.end(), [&](const Texts& batch) { return batch[0] == rare; });
    CHECK(place - batches.begin() <= 31);  // behind those that had come before it, and no others
    std::size_t before = 0;
    for (auto batch = batches.begin(); batch != place; ++batch) before += batch->size();
    CHECK(before >= 30);
  }
}

// A large request is spread over the runs, and small ones need not wait for its end.
void small_beside_large() {
  Fixture at(options_of(10000, 2, 64));  // 8 texts of one block a batch
  at.model.pause(milliseconds(2));
  for (int i = 0; i < 4; ++i) check_vectors(ask(at, Texts(8, {1})), Texts(8, {1}));  // it is known what a token takes
  const std::size_t before = at.model.batches().size();
  const Answered large = ask(at, Texts(1600, {2}));
  at.model.wait_for_batches(before + 20);
  const Answered small = ask(at, {{3}});
  check_vectors(small, {{3}});
  CHECK(at.queue.counters().waiting_texts > 400);
  check_vectors(large, Texts(1600, {2}));
}

void spread_over_runs() {
  Fixture at(options_of(1000, 3, 64));
  at.model.hold();
  const Answered large = ask(at, Texts(24, {1}));
  at.model.wait_for_batches(3);  // three at once, none of which is done
  at.model.release();
  check_vectors(large, Texts(24, {1}));
}

void drain() {
  Fixture at(options_of(1000, 2));
  at.model.hold();
  std::vector<Answered> answers;
  for (int i = 0; i < 20; ++i) answers.push_back(ask(at, {{1}, std::vector<std::int64_t>(20, 2)}));
  std::thread other([&] { at.queue.stop(true); });
  while (refused(at, {}).code != Code::kStopped) std::this_thread::yield();
  at.model.release();
  at.queue.stop(true);
  for (const Answered& answer : answers) CHECK(answer->times == 1 && answer->status.ok());
  other.join();
}

void abandon() {
  Fixture at(options_of(1000, 1));
  at.model.hold();
  const Answered running = ask(at, {{1}});
  at.model.wait_for_batches(1);
  std::vector<Answered> answers;
  for (int i = 0; i < 5; ++i) answers.push_back(ask(at, {{2}}));
  std::thread stopping([&] { at.queue.stop(false); });
  for (const Answered& answer : answers) CHECK(answer->wait().code == Code::kStopped);
  at.model.release();
  stopping.join();
  CHECK(running->times == 1 && running->status.ok());
  CHECK(at.queue.counters().abandoned == 5 && at.queue.counters().open_requests == 0);
}

void stop_in_a_callback() {
  Fixture at(options_of(10, 1));
  std::promise<void> stopped;
  at.queue.submit({{1}},
                  [&](Result<Matrix>) {
                    at.queue.stop(true);
                    stopped.set_value();
                    throw std::runtime_error("a callback that throws has nobody to tell");
                  },
                  {});
  stopped.get_future().get();
  CHECK(refused(at, {{1}}).code == Code::kStopped);
}

// Whatever comes, and however it ends: each accepted request is answered once.
void soak(double seconds, bool drains) {
  std::atomic<std::uint64_t> accepted{0}, answered{0};
  {
    Fixture at(options_of(60, 2));
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 6; ++i)
      threads.emplace_back([&, i] {
        std::mt19937 draw(i);
        const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
        bool is_open = true;
        while (Clock::now() < end || is_open) {
          Texts texts = random_texts(draw, draw() % 20 == 0 ? 50 : 4);
          if (draw() % 40 == 0) texts[0][0] = kPoison;
          if (draw() % 40 == 0) texts[0].clear();
          RequestOptions options;
          if (draw() % 4 == 0) options.deadline = Clock::now() + std::chrono::microseconds(draw() % 3000);
          std::uint64_t id = 0;
          const Status status = guarded([&] {
            id = at.queue.submit(std::move(texts), [&answered](Result<Matrix>) { ++answered; }, options);
            ++accepted;
          });
          is_open = status.code != Code::kStopped && Clock::now() < end;
          if (status.ok() && draw() % 3 == 0) at.queue.cancel(id);
          if (i == 0 && Clock::now() > end) break;
        }
      });
    threads[0].join();
    at.queue.stop(drains);
    for (std::size_t i = 1; i < threads.size(); ++i) threads[i].join();
    CHECK(accepted == answered);
    const BatcherCounters counters = at.queue.counters();
    CHECK(counters.accepted == accepted && counters.waiting_texts == 0 && counters.open_requests == 0);
    CHECK(counters.cancelled > 0 && counters.expired > 0 && counters.failed > 0 && counters.refused > 0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void()>> scenarios = {
      {"many_callers", many_callers},
      {"full", full},
      {"bad_texts", bad_texts},
      {"deadlines", deadlines},
      {"poison", poison},
      {"delay", delay},
      {"due_after_delay", due_after_delay},
      {"neither_long_nor_short_starve", neither_long_nor_short_starve},
      {"small_beside_large", small_beside_large},
      {"spread_over_runs", spread_over_runs},
      {"drain", drain},
      {"abandon", abandon},
      {"stop_in_a_callback", stop_in_a_callback},
      {"soak_and_drain", [] { soak(1, true); }},
      {"soak_and_abandon", [] { soak(1, false); }},
  };
  for (int i = 1; i < argc; ++i) {
    const auto found = scenarios.find(argv[i]);
    if (found == scenarios.end()) return 2;
    found->second();
    std::printf("%s\n", argv[i]);
    std::fflush(stdout);
  }
  if (argc == 1)
    for (const auto& scenario : scenarios) std::printf("%s\n", scenario.first.c_str());
  return 0;
}

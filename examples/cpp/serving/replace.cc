// Replaces the embedder of a server that goes on answering: a new bundle without a pause, and without a request that fails.
//
//   replace BUNDLE [NEW_BUNDLE] [TIMES]
//
// Threads ask without a pause, as the requests of a server do. Meanwhile NEW_BUNDLE (by default BUNDLE again) and BUNDLE are opened in
// turns, TIMES times (4), and each takes the place of the one before.
#include <mra/serving.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using mra::serving::Embedder;

// The embedder that is in use. An Embedder itself must not be assigned to while others use it: what is replaced is a pointer, and
// who has the old one keeps it until the call is done. In C++20 this is std::atomic<std::shared_ptr<const Embedder>>.
class Current {
 public:
  explicit Current(Embedder embedder) : embedder_(std::make_shared<const Embedder>(std::move(embedder))) {}

  std::shared_ptr<const Embedder> get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return embedder_;
  }

  void replace(Embedder embedder) {
    auto next = std::make_shared<const Embedder>(std::move(embedder));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      embedder_.swap(next);
    }
    // Here the old one is freed, or by the last call that uses it: never while the lock is held.
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const Embedder> embedder_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: replace BUNDLE [NEW_BUNDLE] [TIMES]\n");
    return 2;
  }
  const std::string bundles[] = {argv[1], argc > 2 ? argv[2] : argv[1]};
  const int times = argc > 3 ? std::atoi(argv[3]) : 4;
  auto opened = Embedder::open(bundles[0]);
  if (!opened) {
    std::fprintf(stderr, "%s\n", opened.status().message.c_str());
    return static_cast<int>(opened.status().code);
  }
  Current current(std::move(*opened));

  std::atomic<bool> is_over{false};
  std::atomic<std::uint64_t> answered{0}, failed{0};
  const auto serve = [&] {
    do {
      const std::shared_ptr<const Embedder> embedder = current.get();  // one for the whole request: its facts go together
      const std::int64_t last = embedder->info().vocab_size - 1;
      const auto vectors = embedder->embed({{0, last, 0}, {last}});
      ++(vectors && vectors->columns == static_cast<std::size_t>(embedder->info().dimension) ? answered : failed);
    } while (!is_over);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(serve);

  int code = 0;
  for (int i = 1; i <= times && code == 0; ++i) {
    auto next = Embedder::open(bundles[i % 2]);  // as long as that takes, the old one answers
    if (next) {
      current.replace(std::move(*next));
    } else {  // and it stays where the new bundle cannot be opened
      std::fprintf(stderr, "%s\n", next.status().message.c_str());
      code = static_cast<int>(next.status().code);
    }
  }
  is_over = true;
  for (std::thread& thread : threads) thread.join();
  std::printf("%llu requests answered, %llu failed\n", static_cast<unsigned long long>(answered.load()),
              static_cast<unsigned long long>(failed.load()));
  return code != 0 ? code : failed != 0 ? 1 : 0;
}

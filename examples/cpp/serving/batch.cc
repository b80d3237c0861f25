// Many callers with a text each, whose texts share runs: what a server does with its requests.
//
//   batch BUNDLE [CALLERS] < TEXTS
//
// TEXTS holds one text a line. Each of CALLERS threads (8) takes the next one, asks for its vector and waits for it.
#include <mra/batcher.h>
#include <mra/serving.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using mra::serving::Batcher;
using mra::serving::Embedder;
using mra::serving::Matrix;
using mra::serving::Result;
using mra::serving::Status;

int complain(const Status& status) {
  std::fprintf(stderr, "%s\n", status.message.c_str());
  return static_cast<int>(status.code);
}

// One request, as a server's thread makes it.
Result<Matrix> serve(const Embedder& embedder, Batcher& batcher, const std::string& text) {
  auto ids = embedder.tokenize({text});
  if (!ids) return ids.status();
  mra::serving::RequestOptions options;
  options.deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  auto asked = batcher.submit(std::move(*ids), options);
  if (!asked) return asked.status();  // Code::kFull: a server says 429, and the client asks again later
  return asked->vectors.get();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: batch BUNDLE [CALLERS] < TEXTS\n");
    return 2;
  }
  std::vector<std::string> texts;
  for (std::string line; std::getline(std::cin, line);) texts.push_back(line);

  auto opened = Embedder::open(argv[1]);
  if (!opened) return complain(opened.status());
  const auto embedder = std::make_shared<const Embedder>(std::move(*opened));
  auto batcher = Batcher::start(embedder);
  if (!batcher) return complain(batcher.status());

  std::vector<Status> failures(texts.size());
  std::atomic<std::size_t> next{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < (argc > 2 ? std::atoi(argv[2]) : 8); ++i)
    callers.emplace_back([&] {
      for (std::size_t text = next++; text < texts.size(); text = next++)
        if (const auto vectors = serve(*embedder, *batcher, texts[text]); !vectors) failures[text] = vectors.status();
    });
  for (std::thread& caller : callers) caller.join();
  batcher->stop();  // nobody asks any more; a server that still has requests gets them answered

  for (const Status& failure : failures)
    if (!failure.ok()) return complain(failure);
  const auto counters = batcher->counters();
  std::printf("%llu texts in %llu batches, ids by %s\n", static_cast<unsigned long long>(counters.texts),
              static_cast<unsigned long long>(counters.batches), embedder->info().tokenizer.c_str());
}

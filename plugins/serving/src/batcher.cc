// Batcher: the queue over an Embedder.
#include "mra/batcher.h"

#include <memory>
#include <utility>
#include <vector>

#include "batch_queue.h"
#include "failure.h"

namespace mra::serving {

class Batcher::Impl {
 public:
  Impl(std::shared_ptr<const Embedder> embedder, const BatcherOptions& options)
      : embedder_(std::move(embedder)), queue_(shape_of(embedder_.get()), run_of(embedder_.get()), options) {}

  detail::BatchQueue& queue() noexcept { return queue_; }

 private:
  static detail::ModelShape shape_of(const Embedder* embedder) {
    if (embedder == nullptr || embedder->info().dimension == 0)
      fail(Code::kInput, "The batcher needs an Embedder, which was not given or was moved away.");
    const Info& info = embedder->info();
    return {info.length_step,      info.max_seq_len,     info.vocab_size,
            info.max_batch_tokens, info.max_batch_texts, static_cast<std::size_t>(info.dimension),
            info.parallel_runs};
  }
  static detail::RunTexts run_of(const Embedder* embedder) {
    return [embedder](const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out) {
      return embedder->embed(ids, lengths, texts, out);
    };
  }

  std::shared_ptr<const Embedder> embedder_;
  detail::BatchQueue queue_;  // ends before the Embedder that it runs
};

Batcher::Batcher(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Batcher::Batcher(Batcher&&) noexcept = default;
Batcher& Batcher::operator=(Batcher&&) noexcept = default;
Batcher::~Batcher() = default;

Result<Batcher> Batcher::start(std::shared_ptr<const Embedder> embedder, const BatcherOptions& options) noexcept {
  std::unique_ptr<Impl> impl;
  if (Status status = guarded([&] { impl = std::make_unique<Impl>(std::move(embedder), options); }); !status.ok())
    return Result<Batcher>(std::move(status));
  return Batcher(std::move(impl));
}

Result<std::uint64_t> Batcher::submit(std::vector<std::vector<std::int64_t>> texts, Callback done,
                                      const RequestOptions& options) noexcept {
  std::uint64_t id = 0;
  Status status = guarded([&] {
    if (impl_ == nullptr) fail(Code::kStopped, "This Batcher was moved away.");
    if (done == nullptr) fail(Code::kInput, "A request without a callback would be answered to nobody.");
    id = impl_->queue().submit(std::move(texts), std::move(done), options);
  });
  return status.ok() ? Result<std::uint64_t>(id) : Result<std::uint64_t>(std::move(status));
}

Result<Batcher::Asked> Batcher::submit(std::vector<std::vector<std::int64_t>> texts, const RequestOptions& options) noexcept {
  Asked asked;
  Status status = guarded([&] {
    if (impl_ == nullptr) fail(Code::kStopped, "This Batcher was moved away.");
    auto promise = std::make_shared<std::promise<Result<Matrix>>>();
    asked.vectors = promise->get_future();
    asked.id = impl_->queue().submit(
        std::move(texts), [promise](Result<Matrix> vectors) { promise->set_value(std::move(vectors)); }, options);
  });
  return status.ok() ? Result<Asked>(std::move(asked)) : Result<Asked>(std::move(status));
}

bool Batcher::cancel(std::uint64_t id) noexcept { return impl_ != nullptr && impl_->queue().cancel(id); }

void Batcher::stop(bool drain) noexcept {
  if (impl_ != nullptr) impl_->queue().stop(drain);
}

BatcherCounters Batcher::counters() const noexcept { return impl_ != nullptr ? impl_->queue().counters() : BatcherCounters{}; }

}  // namespace mra::serving

// The library for C: each function over its like in C++, with errors as codes and one message a thread.
#include "mra_serving.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "failure.h"
#include "mra/batcher.h"
#include "mra/serving.h"
#include "utf8.h"

using mra::serving::Batcher;
using mra::serving::BatcherOptions;
using mra::serving::Code;
using mra::serving::Embedder;
using mra::serving::fail;
using mra::serving::Failure;
using mra::serving::Matrix;
using mra::serving::Numbers;
using mra::serving::Options;
using mra::serving::Prompt;
using mra::serving::Result;
using mra::serving::Status;
using Ids = std::vector<std::vector<std::int64_t>>;

struct mra_options {
  Options open;
  BatcherOptions batcher;
};

struct mra_embedder {
  std::shared_ptr<const Embedder> embedder;
  std::string info;
};

struct mra_batcher {
  std::shared_ptr<const Embedder> embedder;
  Batcher batcher;
};

namespace {

// Kept by the thread, so that the pointer that was handed out stays.
std::string& last_error() {
  thread_local std::string message;
  return message;
}

template <typename Body>
int called(Body&& body) noexcept {
  Status status = mra::serving::guarded(std::forward<Body>(body));
  last_error().swap(status.message);
  return static_cast<int>(status.code);
}

void must_be_there(const char* name, const void* pointer) {
  if (pointer == nullptr) fail(Code::kInput, std::string(name) + " must not be null.");
}

template <typename Value>
Value& checked(Result<Value>& result) {
  if (!result) throw Failure{result.status()};
  return *result;
}

void checked(Status status) {
  if (!status.ok()) throw Failure{std::move(status)};
}

std::int64_t to_integer(const std::string& name, const std::string& text, std::int64_t low, std::int64_t high) {
  errno = 0;
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < low || value > high)
    fail(Code::kInput, name + "=" + text + " must be an integer from " + std::to_string(low) + " to " + std::to_string(high) + ".");
  return value;
}

void set(mra_options* options, const std::string& name, const std::string& value) {
  Options& open = options->open;
  BatcherOptions& batcher = options->batcher;
  constexpr std::int64_t kLarge = std::int64_t{1} << 48;
  const auto flag = [&](bool* target) { *target = to_integer(name, value, 0, 1) == 1; };
  const auto small = [&](int* target) { *target = static_cast<int>(to_integer(name, value, 0, 1024)); };
  if (name == "device") {
    using mra::serving::Device;
    if (value != "auto" && value != "cpu" && value != "gpu") fail(Code::kInput, "device=" + value + " must be auto, cpu or gpu.");
    open.device = value == "cpu" ? Device::kCpu : value == "gpu" ? Device::kGpu : Device::kAuto;
  } else if (name == "variant") {
    open.variant = value;
  } else if (name == "gpu") {
    small(&open.gpu);
  } else if (name == "threads") {
    small(&open.threads);
  } else if (name == "parallel_runs") {
    small(&open.parallel_runs);
  } else if (name == "max_batch_tokens") {
    open.max_batch_tokens = to_integer(name, value, 1, kLarge);
  } else if (name == "cuda_graphs") {
    flag(&open.cuda_graphs);
  } else if (name == "verify_files") {
    flag(&open.verify_files);
  } else if (name == "mean_of_tokens") {
    flag(&open.mean_of_tokens);
  } else if (name == "pad_to_longest") {
    flag(&open.pad_to_longest);
  } else if (name == "backend_dir") {
    open.backend_dir = value;
  } else if (name == "tokenizer") {
    open.tokenizer = value;
  } else if (name == "python_site") {
    open.python_site = value;
  } else if (name == "shared_threads") {
    flag(&open.shared_threads);
  } else if (name == "arena_bytes") {
    open.arena_bytes = to_integer(name, value, 0, kLarge);
  } else if (name == "max_queue") {
    batcher.max_queue = static_cast<std::size_t>(to_integer(name, value, 1, kLarge));
  } else if (name == "max_delay") {
    batcher.max_delay = std::chrono::microseconds(to_integer(name, value, 0, kLarge));
  } else if (name == "batch_tokens") {
    batcher.max_batch_tokens = to_integer(name, value, 0, kLarge);
  } else if (name == "runs") {
    small(&batcher.runs);
  } else {
    fail(Code::kInput, name + " is no option. mra_serving.h names them.");
  }
}

std::string quoted(const std::string& text) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (byte < 0x20)
      out += {'\\', 'u', '0', '0', kDigits[byte >> 4], kDigits[byte & 15]};
    else
      out += c;
  }
  // Of a file system's names some are not UTF-8, which JSON cannot hold.
  return (mra::serving::detail::end_of_utf8(out) == out.size() ? out : "\"?") + '"';
}

std::string json_of(const mra::serving::Info& info) {
  std::string out = "{";
  const auto put = [&](const char* name, const std::string& value) {
    out += (out.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + value;
  };
  put("backend", quoted(info.backend));
  put("backend_version", quoted(info.backend_version));
  put("device", quoted(info.device));
  put("file", quoted(info.file));
  put("precision", quoted(info.precision));
  put("native_operator", info.native_operator ? "true" : "false");
  put("architecture", quoted(info.architecture));
  put("hidden_size", std::to_string(info.hidden_size));
  put("dimension", std::to_string(info.dimension));
  put("max_seq_len", std::to_string(info.max_seq_len));
  put("max_length", std::to_string(info.max_length));
  put("truncation_side", quoted(info.truncation_side));
  put("vocab_size", std::to_string(info.vocab_size));
  put("length_step", std::to_string(info.length_step));
  put("pooling", quoted(info.pooling));
  put("normalized", info.normalized ? "true" : "false");
  put("similarity", quoted(info.similarity));
  put("tokenizer", quoted(info.tokenizer));
  std::string prompts;
  for (const auto& [name, prompt] : info.prompts) prompts += (prompts.empty() ? "" : ", ") + quoted(name) + ": " + quoted(prompt);
  put("prompts", "{" + prompts + "}");
  put("default_prompt", info.default_prompt ? quoted(*info.default_prompt) : "null");
  put("include_prompt", info.include_prompt ? "true" : "false");
  put("parallel_runs", std::to_string(info.parallel_runs));
  std::string passed_over;
  for (const std::string& reason : info.passed_over) passed_over += (passed_over.empty() ? "" : ", ") + quoted(reason);
  put("passed_over", "[" + passed_over + "]");
  return out + "}";
}

std::vector<std::string_view> views(const char* const* texts, const std::size_t* sizes, std::size_t count) {
  if (count > 0) must_be_there("texts", texts);
  std::vector<std::string_view> out;
  out.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    must_be_there("A text", texts[i]);
    out.emplace_back(texts[i], sizes != nullptr ? sizes[i] : std::strlen(texts[i]));
  }
  return out;
}

Prompt prompt_of(const char* name, const char* text) {
  Prompt out;
  if (name != nullptr) out.name = name;
  if (text != nullptr) out.text = text;
  return out;
}

Numbers numbers_of(int numbers) {
  if (numbers < MRA_FLOAT32 || numbers > MRA_INT8)
    fail(Code::kInput, "numbers=" + std::to_string(numbers) + " must be MRA_FLOAT32, MRA_FLOAT16 or MRA_INT8.");
  return static_cast<Numbers>(numbers);
}

void write(const Matrix& vectors, int numbers, void* out, float* scales) {
  checked(mra::serving::convert(vectors.values.data(), vectors.rows, vectors.columns, numbers_of(numbers), out, scales));
}

// Token ids as the batcher takes them; of a length that no text of the model has, nothing is read.
Ids copied(const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, std::int64_t longest) {
  if (texts > 0) must_be_there("ids", ids);
  if (texts > 0) must_be_there("lengths", lengths);
  Ids out;
  out.reserve(texts);
  for (std::size_t i = 0; i < texts; ids += lengths[i++]) {
    if (lengths[i] > static_cast<std::size_t>(longest))
      fail(Code::kInput, "Text " + std::to_string(i) + " has " + std::to_string(lengths[i]) + " tokens, more than the " +
                             std::to_string(longest) + " of this model. Truncate it when you tokenize.");
    out.emplace_back(ids, ids + lengths[i]);
  }
  return out;
}

void submit(mra_batcher* batcher, Ids ids, double seconds, mra_done done, void* user, std::uint64_t* id) {
  if (done == nullptr) fail(Code::kInput, "done must not be null: the answer would go to nobody.");
  if (!(seconds >= 0 && seconds <= 1e9)) fail(Code::kInput, "seconds=" + std::to_string(seconds) + " must be from 0 to 1e9.");
  mra::serving::RequestOptions options;
  if (seconds > 0) {
    using Clock = std::chrono::steady_clock;
    options.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  Result<std::uint64_t> asked = batcher->batcher.submit(
      std::move(ids),
      [done, user](Result<Matrix> vectors) {
        if (vectors)
          done(user, MRA_OK, "", vectors->values.data(), vectors->rows, vectors->columns);
        else
          done(user, static_cast<int>(vectors.status().code), vectors.status().message.c_str(), nullptr, 0, 0);
      },
      options);
  const std::uint64_t number = checked(asked);
  if (id != nullptr) *id = number;
}

}  // namespace

const char* mra_version(void) { return mra::serving::version(); }

const char* mra_last_error(void) { return last_error().c_str(); }

mra_options* mra_options_new(void) {
  mra_options* options = nullptr;
  called([&] { options = new mra_options; });
  return options;
}

int mra_options_set(mra_options* options, const char* name, const char* value) {
  return called([&] {
    must_be_there("options", options);
    must_be_there("name", name);
    must_be_there("value", value);
    set(options, name, value);
  });
}

int mra_options_set_onnxruntime_env(mra_options* options, void* env) {
  return called([&] {
    must_be_there("options", options);
    options->open.onnxruntime_env = env;
  });
}

void mra_options_free(mra_options* options) { delete options; }

int mra_open(const char* directory, const mra_options* options, mra_embedder** embedder) {
  return called([&] {
    must_be_there("directory", directory);
    must_be_there("embedder", embedder);
    *embedder = nullptr;
    Result<Embedder> opened = Embedder::open(directory, options != nullptr ? options->open : Options{});
    auto shared = std::make_shared<const Embedder>(std::move(checked(opened)));
    std::string info = json_of(shared->info());
    *embedder = new mra_embedder{std::move(shared), std::move(info)};
  });
}

void mra_close(mra_embedder* embedder) { delete embedder; }

int mra_verify(const char* directory, int verify_files) {
  return called([&] {
    must_be_there("directory", directory);
    checked(mra::serving::verify_bundle(directory, verify_files != 0));
  });
}

size_t mra_dimension(const mra_embedder* embedder) {
  return embedder == nullptr ? 0 : static_cast<std::size_t>(embedder->embedder->info().dimension);
}

const char* mra_info(const mra_embedder* embedder) { return embedder == nullptr ? "{}" : embedder->info.c_str(); }

int mra_embed(const mra_embedder* embedder, const int64_t* ids, const size_t* lengths, size_t texts, int numbers, void* out,
              float* scales) {
  return called([&] {
    must_be_there("embedder", embedder);
    if (numbers_of(numbers) == Numbers::kFloat32) {
      checked(embedder->embedder->embed(ids, lengths, texts, static_cast<float*>(out)));
      return;
    }
    Matrix vectors{texts, mra_dimension(embedder), {}};
    vectors.values.resize(vectors.rows * vectors.columns);
    checked(embedder->embedder->embed(ids, lengths, texts, vectors.values.data()));
    write(vectors, numbers, out, scales);
  });
}

int mra_embed_texts(const mra_embedder* embedder, const char* const* texts, const size_t* sizes, size_t count, const char* prompt,
                    const char* prompt_text, int numbers, void* out, float* scales) {
  return called([&] {
    must_be_there("embedder", embedder);
    numbers_of(numbers);
    Result<Matrix> vectors = embedder->embedder->embed_texts(views(texts, sizes, count), prompt_of(prompt, prompt_text));
    write(checked(vectors), numbers, out, scales);
  });
}

int mra_tokenize(const mra_embedder* embedder, const char* text, size_t size, const char* prompt, const char* prompt_text,
                 int64_t* ids, size_t room, size_t* length) {
  return called([&] {
    must_be_there("embedder", embedder);
    must_be_there("text", text);
    must_be_there("length", length);
    if (room > 0) must_be_there("ids", ids);
    Result<Ids> found = embedder->embedder->tokenize({std::string_view(text, size)}, prompt_of(prompt, prompt_text));
    const std::vector<std::int64_t>& all = checked(found).front();
    *length = all.size();
    std::copy_n(all.begin(), std::min(room, all.size()), ids);
  });
}

int mra_batcher_start(const mra_embedder* embedder, const mra_options* options, mra_batcher** batcher) {
  return called([&] {
    must_be_there("embedder", embedder);
    must_be_there("batcher", batcher);
    *batcher = nullptr;
    Result<Batcher> started = Batcher::start(embedder->embedder, options != nullptr ? options->batcher : BatcherOptions{});
    *batcher = new mra_batcher{embedder->embedder, std::move(checked(started))};
  });
}

int mra_submit(mra_batcher* batcher, const int64_t* ids, const size_t* lengths, size_t texts, double seconds, mra_done done,
               void* user, uint64_t* id) {
  return called([&] {
    must_be_there("batcher", batcher);
    submit(batcher, copied(ids, lengths, texts, batcher->embedder->info().max_seq_len), seconds, done, user, id);
  });
}

int mra_submit_texts(mra_batcher* batcher, const char* const* texts, const size_t* sizes, size_t count, const char* prompt,
                     const char* prompt_text, double seconds, mra_done done, void* user, uint64_t* id) {
  return called([&] {
    must_be_there("batcher", batcher);
    Result<Ids> ids = batcher->embedder->tokenize(views(texts, sizes, count), prompt_of(prompt, prompt_text));
    submit(batcher, std::move(checked(ids)), seconds, done, user, id);
  });
}

int mra_cancel(mra_batcher* batcher, uint64_t id) { return batcher != nullptr && batcher->batcher.cancel(id) ? 1 : 0; }

void mra_batcher_stop(mra_batcher* batcher, int drain) {
  if (batcher != nullptr) batcher->batcher.stop(drain != 0);
}

void mra_batcher_free(mra_batcher* batcher) { delete batcher; }

void mra_batcher_count(const mra_batcher* batcher, mra_batcher_counters* counters) {
  if (batcher == nullptr || counters == nullptr) return;
  const mra::serving::BatcherCounters c = batcher->batcher.counters();
  *counters = {c.accepted, c.cancelled, c.expired,      c.abandoned,   c.failed,        c.refused,
               c.batches,  c.texts,     c.wait_seconds, c.run_seconds, c.waiting_texts, c.open_requests};
}

int mra_set_log(mra_log log, void* user) {
  return called([&] {
    mra::serving::LogFunction told;
    if (log != nullptr)
      told = [log, user](mra::serving::LogLevel level, const std::string& message) {
        log(user, static_cast<int>(level), message.c_str());
      };
    checked(mra::serving::set_log(std::move(told)));
  });
}

// Runs the commands of the tests on the serving library, one a line on standard input, one answer a line: one process, many cases.
//
// Fields are separated by tabs. Texts are token ids separated by spaces, texts by semicolons. Answers begin with "ok" or with
// "error", the code and the message.
#include <mra/batcher.h>
#include <mra/serving.h>
#include <mra_serving.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using namespace mra::serving;
using Fields = std::vector<std::string>;
using Texts = std::vector<std::vector<std::int64_t>>;

std::map<std::string, Embedder> embedders;

Fields split(const std::string& text, char by) {
  Fields fields;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find(by, start), text.size());
    fields.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return fields;
}

Texts texts_of(const std::string& text) {
  Texts texts;
  if (text.empty()) return texts;
  for (const std::string& part : split(text, ';')) {
    std::istringstream words(part);
    texts.emplace_back();
    for (std::int64_t id; words >> id;) texts.back().push_back(id);
  }
  return texts;
}

std::string error(const Status& status) {
  std::string message = status.message;
  std::replace(message.begin(), message.end(), '\n', ' ');
  return "error\t" + std::to_string(static_cast<int>(status.code)) + "\t" + message;
}

// An encoder of the caller's own: each byte is a token.
class Letters final : public TextEncoder {
 public:
  Status encode(const std::string_view* texts, std::size_t count, Texts* ids) const noexcept override {
    for (std::size_t i = 0; i < count; ++i) {
      if (texts[i] == "refuse") return {Code::kInput, "This encoder takes no such text."};
      ids->emplace_back(texts[i].begin(), texts[i].end());
    }
    if (count == 3) ids->pop_back();  // one that does not keep its promise
    return {};
  }
  const char* name() const noexcept override { return "letters"; }
};

Options options_of(const Fields& fields, std::size_t first) {
  Options options;
  for (std::size_t i = first; i < fields.size(); ++i) {
    const std::size_t equals = fields[i].find('=');
    const std::string name = fields[i].substr(0, equals), value = fields[i].substr(equals + 1);
    if (name == "device")
      options.device = value == "cpu" ? Device::kCpu : value == "gpu" ? Device::kGpu : Device::kAuto;
    else if (name == "variant")
      options.variant = value;
    else if (name == "gpu")
      options.gpu = std::stoi(value);
    else if (name == "threads")
      options.threads = std::stoi(value);
    else if (name == "parallel_runs")
      options.parallel_runs = std::stoi(value);
    else if (name == "max_batch_tokens")
      options.max_batch_tokens = std::stoll(value);
    else if (name == "cuda_graphs")
      options.cuda_graphs = value == "1";
    else if (name == "verify_files")
      options.verify_files = value == "1";
    else if (name == "mean_of_tokens")
      options.mean_of_tokens = value == "1";
    else if (name == "pad_to_longest")
      options.pad_to_longest = value == "1";
    else if (name == "backend_dir")
      options.backend_dir = value;
    else if (name == "tokenizer")
      options.tokenizer = value;
    else if (name == "python_site")
      options.python_site = value;
    else if (name == "shared_threads")
      options.shared_threads = value == "1";
    else if (name == "arena_bytes")
      options.arena_bytes = std::stoll(value);
    else if (name == "text_encoder")
      options.text_encoder = std::make_shared<Letters>();
    else
      std::abort();
  }
  return options;
}

std::string open(const Fields& fields) {  // open NAME DIRECTORY OPTION=VALUE...
  embedders.erase(fields.at(1));
  Result<Embedder> opened = Embedder::open(fields.at(2), options_of(fields, 3));
  if (!opened) return error(opened.status());
  const Info& info = opened->info();
  std::string answer = "ok\t" + info.backend + "\t" + info.file + "\t" + info.device + "\t" + info.backend_version + "\t" +
                       info.pooling + "\t" + std::to_string(info.max_seq_len);
  for (const std::string& reason : info.passed_over) answer += "\t" + reason;
  embedders.emplace(fields.at(1), std::move(*opened));
  return answer;
}

std::string texts(const Fields& fields) {  // texts DIRECTORY: what a caller has to know of texts and vectors
  const Result<Embedder> opened = Embedder::open(fields.at(1));
  if (!opened) return error(opened.status());
  const Info& info = opened->info();
  std::string answer = "ok\t" + info.pooling + "\t" + std::to_string(info.hidden_size) + "\t" + std::to_string(info.dimension) +
                       "\t" + std::to_string(info.normalized) + "\t" + std::to_string(info.include_prompt) + "\t" +
                       info.similarity + "\t" + info.default_prompt.value_or("none") + "\t" + std::to_string(info.max_length) +
                       "\t" + info.truncation_side;
  for (const auto& [name, prompt] : info.prompts) {
    answer += "\t" + name + "=";
    for (const char c : prompt) answer += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return answer;
}

std::string embed(const Fields& fields) {  // embed NAME FILE TEXTS: writes float32 [rows, columns] to FILE
  const Result<Matrix> vectors = embedders.at(fields.at(1)).embed(texts_of(fields.size() > 3 ? fields[3] : ""));
  if (!vectors) return error(vectors.status());
  std::ofstream file(fields.at(2), std::ios::binary);
  file.write(reinterpret_cast<const char*>(vectors->values.data()),
             static_cast<std::streamsize>(vectors->values.size() * sizeof(float)));
  return "ok\t" + std::to_string(vectors->rows) + "\t" + std::to_string(vectors->columns);
}

// The texts of a file: for each its size as four bytes, the least first, and its bytes.
std::vector<std::string> read_texts(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<std::string> texts;
  for (unsigned char size[4]; file.read(reinterpret_cast<char*>(size), 4);) {
    texts.emplace_back(size[0] | size[1] << 8 | size[2] << 16 | size[3] << 24, '\0');
    file.read(texts.back().data(), static_cast<std::streamsize>(texts.back().size()));
  }
  return texts;
}

Prompt prompt_of(const Fields& fields, std::size_t first) {  // name=NAME or text=TEXT
  Prompt prompt;
  for (std::size_t i = first; i < fields.size(); ++i)
    (fields[i].rfind("name=", 0) == 0 ? prompt.name : prompt.text) = fields[i].substr(5);
  return prompt;
}

std::string tokenizer(const Fields& fields) {  // tokenizer NAME: what makes ids of texts
  return "ok\t" + embedders.at(fields.at(1)).info().tokenizer;
}

std::string tokenize(const Fields& fields) {  // tokenize NAME TEXTS FILE PROMPT: writes ids to FILE, a text a line
  const std::vector<std::string> texts = read_texts(fields.at(2));
  const Result<Texts> ids =
      embedders.at(fields.at(1)).tokenize(std::vector<std::string_view>(texts.begin(), texts.end()), prompt_of(fields, 4));
  if (!ids) return error(ids.status());
  std::ofstream file(fields.at(3));
  for (const std::vector<std::int64_t>& text : *ids) {
    for (std::size_t i = 0; i < text.size(); ++i) file << (i == 0 ? "" : " ") << text[i];
    file << "\n";
  }
  return "ok\t" + std::to_string(ids->size());
}

std::string embed_texts(const Fields& fields) {  // embed_texts NAME TEXTS FILE PROMPT
  const std::vector<std::string> texts = read_texts(fields.at(2));
  const Result<Matrix> vectors =
      embedders.at(fields.at(1)).embed_texts(std::vector<std::string_view>(texts.begin(), texts.end()), prompt_of(fields, 4));
  if (!vectors) return error(vectors.status());
  std::ofstream file(fields.at(3), std::ios::binary);
  file.write(reinterpret_cast<const char*>(vectors->values.data()),
             static_cast<std::streamsize>(vectors->values.size() * sizeof(float)));
  return "ok\t" + std::to_string(vectors->rows) + "\t" + std::to_string(vectors->columns);
}

// The same texts tokenized by several threads at once, by each a few times: whether all got what one gets.
std::string tokenize_at_once(const Fields& fields) {  // tokenize_at_once NAME TEXTS THREADS ROUNDS
  const Embedder& embedder = embedders.at(fields.at(1));
  const std::vector<std::string> texts = read_texts(fields.at(2));
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const Result<Texts> expected = embedder.tokenize(views);
  if (!expected) return error(expected.status());
  std::atomic<int> wrong{0};
  std::vector<std::thread> running;
  for (int i = 0; i < std::stoi(fields.at(3)); ++i)
    running.emplace_back([&] {
      for (int round = 0; round < std::stoi(fields.at(4)); ++round) {
        const Result<Texts> ids = embedder.tokenize(views);
        if (!ids || *ids != *expected) ++wrong;
      }
    });
  for (std::thread& thread : running) thread.join();
  return wrong == 0 ? "ok" : "error\t1\tother ids";
}

std::string counters(const Fields& fields) {
  const Counters c = embedders.at(fields.at(1)).counters();
  return "ok\t" + std::to_string(c.texts) + "\t" + std::to_string(c.tokens) + "\t" + std::to_string(c.padded_tokens) + "\t" +
         std::to_string(c.runs);
}

// Calls that no caller should make; each must be answered with an error, and the process lives on.
std::string misuse(const Fields& fields) {
  Embedder& embedder = embedders.at(fields.at(1));
  std::vector<float> out(4096);
  const std::int64_t ids[] = {5, 6, 7};
  const std::size_t one[] = {3}, huge[] = {std::numeric_limits<std::size_t>::max(), 3}, none[] = {0};
  Status answers[] = {
      embedder.embed(nullptr, one, 1, out.data()), embedder.embed(ids, nullptr, 1, out.data()),
      embedder.embed(ids, one, 1, nullptr),        embedder.embed(ids, huge, 2, out.data()),
      embedder.embed(ids, none, 1, out.data()),    embedder.embed(ids, one, std::numeric_limits<std::size_t>::max(), out.data()),
  };
  std::string said;
  for (const Status& answer : answers) said += (said.empty() ? "" : " | ") + std::string(answer.ok() ? "ACCEPTED" : answer.message);
  const Status fine = embedder.embed(ids, one, 1, out.data()), nothing = embedder.embed(nullptr, nullptr, 0, nullptr);
  if (!fine.ok() || !nothing.ok()) return error(fine.ok() ? nothing : fine);
  Embedder moved = std::move(embedder);
  said += " | " + embedder.embed({{5}}).status().message + " | " + std::to_string(embedder.info().hidden_size);
  embedder = std::move(moved);
  return embedder.embed({{5}}) ? "ok\t" + said : "error\t1\tmoving back";
}

// Many threads, each with its own choice of TEXTS in each round; the largest difference from what one thread gets for each text
// alone.
std::string threads(const Fields& fields) {  // threads NAME THREADS ROUNDS TEXTS
  const Embedder& embedder = embedders.at(fields.at(1));
  const Texts texts = texts_of(fields.at(4));
  std::vector<std::vector<float>> alone;
  for (const auto& text : texts) {
    const Result<Matrix> vectors = embedder.embed(Texts{text});
    if (!vectors) return error(vectors.status());
    alone.push_back(vectors->values);
  }
  std::atomic<bool> failed{false};
  std::vector<double> worst(std::stoul(fields.at(2)), 0);
  const auto work = [&](std::size_t number) {
    std::mt19937_64 generator(number);
    for (int round = 0; round < std::stoi(fields.at(3)) && !failed; ++round) {
      Texts chosen;
      std::vector<std::size_t> which(1 + generator() % texts.size());
      for (std::size_t& index : which) chosen.push_back(texts[index = generator() % texts.size()]);
      if (round % 3 == 2) {  // a bad call in between harms nobody
        Texts bad = chosen;
        bad.back().push_back(-1);
        if (embedder.embed(bad)) failed = true;
      }
      const Result<Matrix> vectors = embedder.embed(chosen);
      if (!vectors) {
        failed = true;
        return;
      }
      for (std::size_t row = 0; row < which.size(); ++row)
        for (std::size_t d = 0; d < vectors->columns; ++d)
          worst[number] = std::max(worst[number],
                                   std::abs(static_cast<double>(vectors->row(row)[d]) - static_cast<double>(alone[which[row]][d])));
    }
  };
  std::vector<std::thread> running;
  for (std::size_t i = 0; i < worst.size(); ++i) running.emplace_back(work, i);
  for (std::thread& thread : running) thread.join();
  if (failed) return "error\t1\ta call failed that should not, or a bad one passed";
  return "ok\t" + std::to_string(*std::max_element(worst.begin(), worst.end()));
}

// The same texts, each a request of its own or several in one, by many threads through one batcher; some are cancelled.
std::string batch(const Fields& fields) {  // batch NAME THREADS ROUNDS TEXTS
  const Embedder& embedder = embedders.at(fields.at(1));
  const Texts texts = texts_of(fields.at(4));
  const Result<Matrix> alone = embedder.embed(texts);
  if (!alone) return error(alone.status());
  Result<Batcher> batcher = Batcher::start(std::shared_ptr<const Embedder>(&embedder, [](const Embedder*) {}));
  if (!batcher) return error(batcher.status());
  std::atomic<std::uint64_t> failed{0}, cancelled{0};
  std::vector<double> worst(std::stoul(fields.at(2)), 0);
  const auto work = [&](std::size_t number) {
    std::mt19937_64 generator(number);
    for (int round = 0; round < std::stoi(fields.at(3)); ++round) {
      std::vector<std::size_t> which(1 + generator() % 4);
      Texts chosen;
      for (std::size_t& index : which) chosen.push_back(texts[index = generator() % texts.size()]);
      Result<Batcher::Asked> asked = batcher->submit(std::move(chosen));
      if (!asked) {
        ++failed;
        return;
      }
      if (round % 5 == 4) batcher->cancel(asked->id);
      const Result<Matrix> vectors = asked->vectors.get();
      if (!vectors) ++(vectors.status().code == Code::kCancelled && round % 5 == 4 ? cancelled : failed);
      if (!vectors) continue;
      for (std::size_t row = 0; row < which.size(); ++row)
        for (std::size_t d = 0; d < vectors->columns; ++d)
          worst[number] = std::max(
              worst[number], std::abs(static_cast<double>(vectors->row(row)[d]) - static_cast<double>(alone->row(which[row])[d])));
    }
  };
  std::vector<std::thread> running;
  for (std::size_t i = 0; i < worst.size(); ++i) running.emplace_back(work, i);
  for (std::thread& thread : running) thread.join();
  batcher->stop();
  const BatcherCounters counters = batcher->counters();
  Batcher moved = std::move(*batcher);
  if (batcher->submit(Texts{{5}}) || batcher->cancel(1) || batcher->counters().accepted != 0) ++failed;
  if (moved.submit(Texts{{5}}).status().code != Code::kStopped) ++failed;
  if (failed != 0) return "error\t1\t" + std::to_string(failed) + " calls failed that should not";
  return "ok\t" + std::to_string(*std::max_element(worst.begin(), worst.end())) + "\t" + std::to_string(counters.texts) + "\t" +
         std::to_string(counters.batches) + "\t" + std::to_string(counters.open_requests) + "\t" +
         std::to_string(counters.cancelled == cancelled);
}

std::string no_batcher(const Fields& fields) {  // no_batcher NAME: what a batcher cannot be started over
  const Result<Batcher> nothing = Batcher::start(nullptr);
  BatcherOptions options;
  options.max_batch_tokens = 1 << 30;
  const Result<Batcher> large =
      Batcher::start(std::shared_ptr<const Embedder>(&embedders.at(fields.at(1)), [](const Embedder*) {}), options);
  return "ok\t" + nothing.status().message + "\t" + large.status().message;
}

// Calls in C that no caller should make, and what is said to each; and what a good one gives beside them.
std::string c_misuse(const Fields& fields) {  // c_misuse DIRECTORY
  std::string said;
  const auto heard = [&](int code) { said += "\t" + std::to_string(code) + " " + mra_last_error(); };
  mra_options* options = mra_options_new();
  heard(mra_options_set(nullptr, "gpu", "0"));
  heard(mra_options_set(options, nullptr, "0"));
  heard(mra_options_set(options, "nothing", "0"));
  heard(mra_options_set(options, "threads", "many"));
  heard(mra_options_set(options, "device", "tpu"));
  heard(mra_options_set(options, "parallel_runs", "2"));
  heard(mra_options_set(options, "max_queue", "3"));
  mra_embedder* embedder = nullptr;
  heard(mra_open(nullptr, nullptr, &embedder));
  heard(mra_open("/nowhere", options, &embedder));
  heard(mra_open(fields.at(1).c_str(), options, nullptr));
  heard(mra_verify("/nowhere", 0));
  heard(mra_open(fields.at(1).c_str(), options, &embedder));
  const std::size_t dimension = mra_dimension(embedder);
  const std::int64_t ids[] = {5, 6, 7};
  const std::size_t lengths[] = {2, 1}, huge[] = {std::numeric_limits<std::size_t>::max(), 1};
  std::vector<float> out(2 * dimension), scales(2);
  heard(mra_embed(nullptr, ids, lengths, 2, MRA_FLOAT32, out.data(), nullptr));
  heard(mra_embed(embedder, ids, lengths, 2, 7, out.data(), nullptr));
  heard(mra_embed(embedder, ids, lengths, 2, MRA_INT8, out.data(), nullptr));
  heard(mra_embed(embedder, ids, huge, 2, MRA_FLOAT16, out.data(), nullptr));
  const char* texts[] = {"a", nullptr};
  heard(mra_embed_texts(embedder, texts, nullptr, 2, nullptr, nullptr, MRA_FLOAT32, out.data(), nullptr));
  heard(mra_embed_texts(embedder, texts, nullptr, 1, "name", "text", MRA_FLOAT32, out.data(), nullptr));
  mra_batcher* batcher = nullptr;
  heard(mra_batcher_start(nullptr, options, &batcher));
  heard(mra_batcher_start(embedder, options, &batcher));
  mra_close(embedder);  // what was started keeps it
  const auto done = [](void* user, int code, const char*, const float* vectors, std::size_t rows, std::size_t columns) {
    if (code == MRA_OK && rows == 2) std::copy_n(vectors, rows * columns, static_cast<float*>(user));
  };
  heard(mra_submit(batcher, ids, huge, 2, 0, done, nullptr, nullptr));
  heard(mra_submit(batcher, ids, lengths, 2, 0, nullptr, nullptr, nullptr));
  heard(mra_submit(batcher, ids, lengths, 2, -1, done, nullptr, nullptr));
  std::uint64_t id = 0;
  heard(mra_submit(batcher, ids, lengths, 2, 3600, done, out.data(), &id));
  mra_batcher_stop(batcher, 1);
  heard(mra_submit(batcher, ids, lengths, 2, 0, done, nullptr, nullptr));
  mra_batcher_counters counters;
  mra_batcher_count(batcher, &counters);
  said += "\t" + std::to_string(counters.accepted) + " " + std::to_string(counters.texts) + " " +
          std::to_string(mra_cancel(batcher, id));
  double sum = 0;
  for (const float value : out) sum += std::abs(static_cast<double>(value));
  mra_batcher_free(batcher);
  mra_options_free(options);
  mra_batcher_free(nullptr);
  mra_close(nullptr);
  mra_options_free(nullptr);
  return "ok" + said + "\t" + std::to_string(sum);
}

std::int64_t resident_kib() {
  std::ifstream file("/proc/self/statm");
  std::int64_t pages = 0;
  file >> pages >> pages;
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

// Mixed requests, good and bad, in THREADS threads for SECONDS; resident KiB after the first third, and the most and the last
// of the rest, seen every tenth of a second.
std::string soak(const Fields& fields) {  // soak NAME THREADS SECONDS
  using Clock = std::chrono::steady_clock;
  const Embedder& embedder = embedders.at(fields.at(1));
  const auto began = Clock::now();
  const auto total = std::chrono::duration<double>(std::stod(fields.at(3)));
  std::atomic<std::uint64_t> good{0}, refused{0}, wrong{0};
  const auto work = [&](std::size_t number) {
    std::mt19937_64 generator(number);
    const auto below = [&](std::uint64_t limit) { return generator() % limit; };
    while (Clock::now() - began < total) {
      Texts texts(below(5) == 0 ? 1 + below(60) : 1 + below(6));
      for (auto& text : texts) {
        text.resize(1 + below(static_cast<std::uint64_t>(embedder.info().max_seq_len)) / (1 + below(8)));
        for (std::int64_t& id : text) id = static_cast<std::int64_t>(below(static_cast<std::uint64_t>(embedder.info().vocab_size)));
      }
      const std::uint64_t kind = below(8);
      auto& victim = texts[below(texts.size())];
      if (kind == 0) victim.clear();
      if (kind == 1) victim.resize(static_cast<std::size_t>(embedder.info().max_seq_len) + 1 + below(1000));
      if (kind == 2) victim.back() = static_cast<std::int64_t>(generator());
      const bool is_bad =
          kind == 0 || kind == 1 || (kind == 2 && (victim.back() < 0 || victim.back() >= embedder.info().vocab_size));
      const Result<Matrix> vectors = embedder.embed(texts);
      if (static_cast<bool>(vectors) == is_bad) ++wrong;
      if (vectors)
        ++good;
      else
        ++refused;
    }
  };
  std::vector<std::thread> running;
  for (int i = 0; i < std::stoi(fields.at(2)); ++i) running.emplace_back(work, static_cast<std::size_t>(i));
  std::this_thread::sleep_until(began + total / 3);
  const std::int64_t warm = resident_kib();
  std::int64_t most = warm, last = warm;
  while (Clock::now() - began < total * 0.95) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    last = resident_kib();
    most = std::max(most, last);
  }
  for (std::thread& thread : running) thread.join();
  return "ok\t" + std::to_string(warm) + "\t" + std::to_string(most) + "\t" + std::to_string(last) + "\t" + std::to_string(good) +
         "\t" + std::to_string(refused) + "\t" + std::to_string(wrong);
}

std::string answer(const Fields& fields) {
  if (fields.at(0) == "open") return open(fields);
  if (fields[0] == "close") return embedders.erase(fields.at(1)) == 1 ? "ok" : "error\t1\tnot open";
  if (fields[0] == "verify") {
    const Status status = verify_bundle(fields.at(1), fields.at(2) == "1");
    return status.ok() ? "ok" : error(status);
  }
  if (fields[0] == "texts") return texts(fields);
  if (fields[0] == "embed") return embed(fields);
  if (fields[0] == "tokenizer") return tokenizer(fields);
  if (fields[0] == "tokenize") return tokenize(fields);
  if (fields[0] == "tokenize_at_once") return tokenize_at_once(fields);
  if (fields[0] == "embed_texts") return embed_texts(fields);
  if (fields[0] == "counters") return counters(fields);
  if (fields[0] == "misuse") return misuse(fields);
  if (fields[0] == "threads") return threads(fields);
  if (fields[0] == "batch") return batch(fields);
  if (fields[0] == "no_batcher") return no_batcher(fields);
  if (fields[0] == "c_misuse") return c_misuse(fields);
  if (fields[0] == "soak") return soak(fields);
  std::abort();
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) std::cout << answer(split(line, '\t')) << std::endl;
  embedders.clear();
  return 0;
}

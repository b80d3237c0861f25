// mra-embed: texts or token ids on standard input, one vector a text on standard output; or, with --bench, how fast that goes here.
#include <mra/batcher.h>
#include <mra/serving.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <future>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using mra::serving::Batcher;
using mra::serving::BatcherOptions;
using mra::serving::Code;
using mra::serving::Embedder;
using mra::serving::Matrix;
using mra::serving::Options;
using mra::serving::Prompt;
using mra::serving::Result;
using mra::serving::Status;
using Ids = std::vector<std::int64_t>;
using Texts = std::vector<Ids>;

constexpr const char* kUsage =
    R"(usage: mra-embed BUNDLE --texts [OPTIONS] < TEXTS > VECTORS
       mra-embed BUNDLE [OPTIONS] < IDS > VECTORS
       mra-embed BUNDLE --bench [OPTIONS]

BUNDLE is what `mra-export bundle` wrote. TEXTS holds one text a line, in UTF-8. IDS holds one text a line, as token ids with spaces
between; special tokens are among them. `python -m mra_export.embedding.token_ids BUNDLE < TEXTS > IDS` makes them, with the bundle's
prompt. Vectors come in the order of the texts, one JSON list a line. Exit codes: 0 done, 2 bad usage or input, 4 a library or GPU is missing, 1 anything else.

  --texts                  lines are texts, not token ids
  --tokenizer NAME         tables: the bundle's, or python: Hugging Face's, by libmra_serving_python.so (tables, where there are any)
  --python-site DIR        with python: the folder that its package tokenizers is in
  --prompt NAME            of the bundle's prompts, put before each text (the bundle's default)
  --prompt-text TEXT       put before each text instead; '' for nothing
  --binary                 write raw float32 instead of JSON
  --window N               texts that are read, sorted by length and run together (1024)
  --device auto|cpu|gpu    auto: an engine that this machine can run, else OpenVINO or ONNX Runtime on the CPU (auto)
  --variant NAME           onnxruntime, openvino, tensorrt, rtx, or a file of the bundle such as engines/fp16.engine
  --gpu N                  number of the GPU (0)
  --threads N              on the CPU: threads that share one run; 0 for one a core, with OpenVINO for a share of them (0)
  --parallel N             runs at the same time; 0 for 2 with engines and OpenVINO, one a core with ONNX Runtime (0)
  --max-batch-tokens N     most tokens of one run, padding included (8192)
  --cuda-graphs            engines: keep a CUDA graph for each shape
  --backend-dir DIR        folder of libmra_serving_openvino.so, _tensorrt.so, _rtx.so and _python.so
  --mean                   for a bundle without pooling: the mean over each text's tokens
  --no-verify              do not hash the files of the bundle
  -v, --verbose            say on standard error what was opened
  -h, --help               this text
      --version

  --bench                  measure with random ids instead of reading any
  --clients N,...          threads that ask at the same time (1)
  --batch N,...            texts of one request (1,32)
  --lengths SPEC,...       tokens of a text: N, LOW-HIGH, or lognormal:MEDIAN:SIGMA, cut to the model's longest (lognormal:64:0.8)
  --seconds S              time for each line, after a fifth of it to warm up (2)
  --compare-padding        measure each line also with whole requests padded to their longest text
  --compare-batcher        measure each line also with the requests of all clients batched together
  --max-delay MICROSECONDS of the batcher: how long a text may wait for others while a run is free (0)
  --json                   one JSON object instead of a table
)";

struct UsageError {
  std::string message;
};

struct Arguments {
  std::string bundle;
  Options options;
  bool texts = false, binary = false, verbose = false, bench = false, json = false, compare_padding = false;
  bool compare_batcher = false;
  Prompt prompt;
  BatcherOptions batcher;
  std::int64_t window = 1024;
  std::vector<std::int64_t> clients{1}, batches{1, 32};
  std::vector<std::string> lengths{"lognormal:64:0.8"};
  double seconds = 2;
};

std::int64_t to_integer(const std::string& name, const std::string& text, std::int64_t low, std::int64_t high) {
  errno = 0;
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < low || value > high)
    throw UsageError{name + "=" + text + " must be an integer from " + std::to_string(low) + " to " + std::to_string(high) + "."};
  return value;
}

double to_number(const std::string& name, const std::string& text, double low, double high) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= low && value <= high))
    throw UsageError{name + "=" + text + " must be a number from " + std::to_string(low) + " to " + std::to_string(high) + "."};
  return value;
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find(by, start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::vector<std::int64_t> to_integers(const std::string& name, const std::string& text, std::int64_t high) {
  std::vector<std::int64_t> values;
  for (const std::string& part : split(text, ',')) values.push_back(to_integer(name, part, 1, high));
  return values;
}

Arguments parse(int argc, char** argv) {
  Arguments out;
  const std::vector<std::string> words(argv + 1, argv + argc);
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string name = words[i], given;
    const std::size_t equals = name.rfind("--", 0) == 0 ? name.find('=') : std::string::npos;
    const bool has_given = equals != std::string::npos;
    if (has_given) {
      given = name.substr(equals + 1);
      name.resize(equals);
    }
    const auto value = [&]() -> std::string {
      if (has_given) return given;
      if (i + 1 == words.size()) throw UsageError{name + " needs a value."};
      return words[++i];
    };
    const auto flag = [&](bool* target) {
      if (has_given) throw UsageError{name + " takes no value."};
      *target = true;
    };
    const auto integer = [&](std::int64_t low, std::int64_t high) { return to_integer(name, value(), low, high); };
    if (name == "-h" || name == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    } else if (name == "--version") {
      std::printf("mra-embed %s\n", mra::serving::version());
      std::exit(0);
    } else if (name == "--texts") {
      flag(&out.texts);
    } else if (name == "--tokenizer") {
      out.options.tokenizer = value();
    } else if (name == "--python-site") {
      out.options.python_site = value();
    } else if (name == "--prompt") {
      out.prompt.name = value();
    } else if (name == "--prompt-text") {
      out.prompt.text = value();
    } else if (name == "--binary") {
      flag(&out.binary);
    } else if (name == "--window") {
      out.window = integer(1, 1 << 20);
    } else if (name == "--device") {
      const std::string device = value();
      if (device != "auto" && device != "cpu" && device != "gpu")
        throw UsageError{"--device=" + device + " must be auto, cpu or gpu."};
      using mra::serving::Device;
      out.options.device = device == "cpu" ? Device::kCpu : device == "gpu" ? Device::kGpu : Device::kAuto;
    } else if (name == "--variant") {
      out.options.variant = value();
    } else if (name == "--gpu") {
      out.options.gpu = static_cast<int>(integer(0, 1023));
    } else if (name == "--threads") {
      out.options.threads = static_cast<int>(integer(0, 1024));
    } else if (name == "--parallel") {
      out.options.parallel_runs = static_cast<int>(integer(0, 1024));
    } else if (name == "--max-batch-tokens") {
      out.options.max_batch_tokens = integer(1, 1 << 24);
    } else if (name == "--cuda-graphs") {
      flag(&out.options.cuda_graphs);
    } else if (name == "--backend-dir") {
      out.options.backend_dir = value();
    } else if (name == "--mean") {
      flag(&out.options.mean_of_tokens);
    } else if (name == "--no-verify") {
      bool off = false;
      flag(&off);
      out.options.verify_files = !off;
    } else if (name == "-v" || name == "--verbose") {
      flag(&out.verbose);
    } else if (name == "--bench") {
      flag(&out.bench);
    } else if (name == "--clients") {
      out.clients = to_integers(name, value(), 1024);
    } else if (name == "--batch") {
      out.batches = to_integers(name, value(), 1 << 20);
    } else if (name == "--lengths") {
      out.lengths = split(value(), ',');
    } else if (name == "--seconds") {
      out.seconds = to_number(name, value(), 0.01, 86400);
    } else if (name == "--compare-padding") {
      flag(&out.compare_padding);
    } else if (name == "--compare-batcher") {
      flag(&out.compare_batcher);
    } else if (name == "--max-delay") {
      out.batcher.max_delay = std::chrono::microseconds(integer(0, 60'000'000));
    } else if (name == "--json") {
      flag(&out.json);
    } else if (name.size() > 1 && name[0] == '-') {
      throw UsageError{name + " is no option. See mra-embed --help."};
    } else if (out.bundle.empty()) {
      out.bundle = name;
    } else {
      throw UsageError{"One bundle is embedded with at a time; " + name + " is one too many."};
    }
  }
  if (out.bundle.empty()) throw UsageError{"BUNDLE is missing. See mra-embed --help."};
  if (out.bench && out.binary) throw UsageError{"--bench prints no vectors: leave out --binary."};
  if (!out.bench && (out.json || out.compare_padding)) throw UsageError{"--json and --compare-padding belong to --bench."};
  if (!out.bench && out.compare_batcher) throw UsageError{"--compare-batcher belongs to --bench."};
  if (out.bench && out.texts) throw UsageError{"--bench takes no texts: leave out --texts."};
  if (!out.texts && (out.prompt.name || out.prompt.text || !out.options.tokenizer.empty()))
    throw UsageError{"--prompt, --prompt-text and --tokenizer belong to --texts: token ids have their prompt already."};
  return out;
}

int complain(const Status& status) {
  std::fprintf(stderr, "mra-embed: %s\n", status.message.c_str());
  return static_cast<int>(status.code);
}

// Reads lines of ids from standard input; never holds more of a line than its ids, nor more ids than a text can have.
class IdReader {
 public:
  explicit IdReader(std::int64_t max_seq_len) : most_(static_cast<std::size_t>(max_seq_len)) {}

  // False at the end of the input. Throws UsageError for a line that holds something else than ids.
  bool next(Ids* ids) {
    ids->clear();
    int c = getc_unlocked(stdin);
    if (c == EOF) {
      if (std::ferror(stdin)) throw UsageError{"Standard input cannot be read: " + std::string(std::strerror(errno)) + "."};
      return false;
    }
    ++line_;
    while (c != '\n' && c != EOF) {
      if (c == ' ' || c == '\t' || c == '\r') {
        c = getc_unlocked(stdin);
        continue;
      }
      const bool is_negative = c == '-';
      if (is_negative) c = getc_unlocked(stdin);
      if (c < '0' || c > '9') refuse("holds something else than token ids: numbers with spaces between");
      std::int64_t value = 0;
      for (; c >= '0' && c <= '9'; c = getc_unlocked(stdin)) {
        if (value > (std::numeric_limits<std::int64_t>::max() - 9) / 10) refuse("holds a number that is no token id");
        value = value * 10 + (c - '0');
      }
      if (c != ' ' && c != '\t' && c != '\r' && c != '\n' && c != EOF)
        refuse("holds something else than token ids: numbers with spaces between");
      if (ids->size() == most_) refuse("has more than " + std::to_string(most_) + " tokens. Truncate it when you tokenize");
      ids->push_back(is_negative ? -value : value);
    }
    if (ids->empty()) refuse("has no token ids. Even an empty text has the model's special tokens");
    return true;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) { throw UsageError{"Line " + std::to_string(line_) + " " + what + "."}; }

  std::size_t most_, line_ = 0;
};

// A line of standard input as it is, of 16 MiB at most; false at its end.
bool next_line(std::size_t number, std::string* line) {
  constexpr std::size_t kMost = std::size_t{1} << 24;
  line->clear();
  int c = getc_unlocked(stdin);
  if (c == EOF && std::ferror(stdin)) throw UsageError{"Standard input cannot be read: " + std::string(std::strerror(errno)) + "."};
  if (c == EOF) return false;
  for (; c != '\n' && c != EOF; c = getc_unlocked(stdin)) {
    if (line->size() == kMost) throw UsageError{"Line " + std::to_string(number) + " has more than 16 MiB."};
    *line += static_cast<char>(c);
  }
  return true;
}

void write_vectors(const Matrix& vectors, bool binary) {
  if (binary) {
    std::fwrite(vectors.values.data(), sizeof(float), vectors.values.size(), stdout);
  } else {
    for (std::size_t row = 0; row < vectors.rows; ++row) {
      for (std::size_t d = 0; d < vectors.columns; ++d) {
        const double value = static_cast<double>(vectors.row(row)[d]);
        if (std::isfinite(value))
          std::fprintf(stdout, d == 0 ? "[%.9g" : ", %.9g", value);
        else
          std::fprintf(stdout, d == 0 ? "[%s" : ", %s", "null");  // JSON has no NaN
      }
      std::fputs("]\n", stdout);
    }
  }
  if (std::ferror(stdout) || std::fflush(stdout) != 0)
    throw std::runtime_error("Standard output cannot be written: " + std::string(std::strerror(errno)) + ".");
}

struct Window {
  Texts ids;
  std::vector<std::string> texts;
  std::size_t first_line;  // its number in the input, from 1
  std::future<Result<Matrix>> vectors;
};

// The library counts texts from 0 within a call; people count lines of the input from 1.
Status in_lines(Status status, std::size_t first_line) {
  std::size_t row = 0;
  int used = 0;
  if (status.code == Code::kInput && std::sscanf(status.message.c_str(), "Text %zu%n", &row, &used) == 1)
    status.message = "Line " + std::to_string(first_line + row) + status.message.substr(static_cast<std::size_t>(used));
  return status;
}

int embed(const Embedder& embedder, const Arguments& arguments) {
  // Two windows are under way at most: the next one is read while the last one runs.
  std::deque<std::unique_ptr<Window>> under_way;
  IdReader reader(embedder.info().max_seq_len);
  std::size_t lines = 0;
  const auto finish_first = [&]() -> Status {
    const Result<Matrix> vectors = under_way.front()->vectors.get();
    if (!vectors) return in_lines(vectors.status(), under_way.front()->first_line);
    write_vectors(*vectors, arguments.binary);
    under_way.pop_front();
    return {};
  };
  UsageError read_error;
  for (bool more = true; more;) {
    auto window = std::make_unique<Window>();
    window->first_line = lines + 1;
    const auto most = static_cast<std::size_t>(arguments.window);
    try {
      if (arguments.texts)
        for (std::string line; more && window->texts.size() < most;)
          if ((more = next_line(lines + window->texts.size() + 1, &line))) window->texts.push_back(line);
      for (Ids ids; !arguments.texts && more && window->ids.size() < most;)
        if ((more = reader.next(&ids))) window->ids.push_back(ids);
    } catch (const UsageError& error) {  // what stands before the bad line is still embedded
      read_error = error;
      more = false;
    }
    const std::size_t count = window->texts.size() + window->ids.size();
    lines += count;
    if (count > 0) {
      Window* raw = window.get();
      under_way.push_back(std::move(window));
      raw->vectors = std::async(std::launch::async, [raw, &embedder, &arguments] {
        if (!arguments.texts) return embedder.embed(raw->ids);
        return embedder.embed_texts(std::vector<std::string_view>(raw->texts.begin(), raw->texts.end()), arguments.prompt);
      });
    }
    while (under_way.size() > (more ? 1U : 0U))
      if (const Status status = finish_first(); !status.ok()) return complain(status);
  }
  if (!read_error.message.empty()) throw read_error;
  return 0;
}

// Lengths of texts: the same for a seed.
class Lengths {
 public:
  Lengths(const std::string& spec, std::int64_t most) : most_(most) {
    const std::vector<std::string> parts = split(spec, ':');
    if (parts[0] == "lognormal" && parts.size() == 3) {
      median_ = to_number("--lengths", parts[1], 1, 1e6);
      sigma_ = to_number("--lengths", parts[2], 0, 10);
      return;
    }
    const std::vector<std::string> ends = split(spec, '-');
    if (parts.size() != 1 || ends.size() > 2)
      throw UsageError{"--lengths=" + spec + " must be N, LOW-HIGH or lognormal:MEDIAN:SIGMA."};
    low_ = to_integer("--lengths", ends.front(), 1, most);
    high_ = to_integer("--lengths", ends.back(), low_, most);
  }

  std::int64_t operator()(std::mt19937_64& generator) const {
    if (median_ > 0) {
      const double length = std::lognormal_distribution<>(std::log(median_), sigma_)(generator);
      return static_cast<std::int64_t>(std::clamp(length, 1.0, static_cast<double>(most_)));
    }
    return std::uniform_int_distribution<std::int64_t>(low_, high_)(generator);
  }

 private:
  std::int64_t most_, low_ = 0, high_ = 0;
  double median_ = 0, sigma_ = 0;
};

struct Measured {
  std::string lengths, padding;
  std::int64_t clients = 0, batch = 0;
  std::uint64_t requests = 0;
  double texts_per_second = 0, tokens_per_second = 0, padding_share = 0, p50 = 0, p90 = 0, p99 = 0, most = 0;
};

double percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::min(std::max<std::size_t>(rank, 1), sorted.size()) - 1];
}

Result<Matrix> ask(Batcher& batcher, Texts texts) {
  Result<Batcher::Asked> asked = batcher.submit(std::move(texts));
  return asked ? asked->vectors.get() : Result<Matrix>(asked.status());
}

// One line of the table: `clients` threads, each asking again as soon as it has its answer; through `batcher` where there is one.
Measured measure(const Embedder& embedder, Batcher* batcher, const std::string& spec, std::int64_t clients, std::int64_t batch,
                 double seconds) {
  using Clock = std::chrono::steady_clock;
  const Lengths lengths(spec, embedder.info().max_seq_len);
  struct Client {
    std::vector<double> milliseconds;
    Status status;
  };
  std::vector<Client> results(static_cast<std::size_t>(clients));
  const auto start = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds / 5));
  const auto end = start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const auto work = [&](std::size_t number) {
    Client& client = results[number];
    std::mt19937_64 generator(number);
    std::uniform_int_distribution<std::int64_t> id(0, embedder.info().vocab_size - 1);
    // At least one request is measured, however long it takes.
    while (client.status.ok() && (Clock::now() < end || client.milliseconds.empty())) {
      Texts texts(static_cast<std::size_t>(batch));
      for (Ids& text : texts) {
        text.resize(static_cast<std::size_t>(lengths(generator)));
        for (std::int64_t& value : text) value = id(generator);
      }
      const auto asked = Clock::now();
      const Result<Matrix> vectors = batcher != nullptr ? ask(*batcher, std::move(texts)) : embedder.embed(texts);
      const auto answered = Clock::now();
      if (!vectors) client.status = vectors.status();
      if (asked >= start) client.milliseconds.push_back(std::chrono::duration<double, std::milli>(answered - asked).count());
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < results.size(); ++i) threads.emplace_back(work, i);
  std::this_thread::sleep_until(start);
  const mra::serving::Counters before = embedder.counters();
  const auto began = Clock::now();
  for (std::thread& thread : threads) thread.join();
  const double elapsed = std::chrono::duration<double>(Clock::now() - began).count();
  const mra::serving::Counters after = embedder.counters();

  Measured out;
  out.lengths = spec;
  out.clients = clients;
  out.batch = batch;
  std::vector<double> all;
  for (const Client& client : results) {
    if (!client.status.ok()) throw client.status;
    all.insert(all.end(), client.milliseconds.begin(), client.milliseconds.end());
  }
  std::sort(all.begin(), all.end());
  const auto tokens = static_cast<double>(after.tokens - before.tokens),
             padded = static_cast<double>(after.padded_tokens - before.padded_tokens);
  out.requests = all.size();
  out.texts_per_second = static_cast<double>(after.texts - before.texts) / elapsed;
  out.tokens_per_second = tokens / elapsed;
  out.padding_share = padded > 0 ? 1 - tokens / padded : 0;
  out.p50 = percentile(all, 0.5);
  out.p90 = percentile(all, 0.9);
  out.p99 = percentile(all, 0.99);
  out.most = all.back();
  return out;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + '"';
}

int bench(const Embedder& embedder, const Arguments& arguments) {
  struct Way {
    const char* padding;
    const Embedder* embedder;
    Batcher* batcher;
  };
  std::vector<Way> ways{{"block", &embedder, nullptr}};
  Result<Embedder> longest = Status{};
  Result<Batcher> batcher = Status{};
  if (arguments.compare_padding) {
    Options options = arguments.options;
    options.pad_to_longest = true;
    longest = Embedder::open(arguments.bundle, options);
    if (!longest) return complain(longest.status());
    ways.push_back({"longest", &*longest, nullptr});
  }
  if (arguments.compare_batcher) {
    batcher = Batcher::start(std::shared_ptr<const Embedder>(&embedder, [](const Embedder*) {}), arguments.batcher);
    if (!batcher) return complain(batcher.status());
    ways.push_back({"block", &embedder, &*batcher});
  }
  const mra::serving::Info& info = embedder.info();
  if (!arguments.json) {
    std::printf("%s %s, %s, %s on %s, %u cores\n", info.backend.c_str(), info.backend_version.c_str(), info.file.c_str(),
                info.precision.c_str(), info.device.c_str(), std::thread::hardware_concurrency());
    std::printf("%7s %6s %-20s %-8s %9s %10s %11s %8s %9s %9s %9s\n", "clients", "batch", "lengths", "padding", "requests",
                "texts/s", "tokens/s", "padded", "p50 ms", "p90 ms", "p99 ms");
  }
  std::string lines;
  for (const std::string& spec : arguments.lengths)
    for (const std::int64_t batch : arguments.batches)
      for (const std::int64_t clients : arguments.clients)
        for (const Way& way : ways) {
          const Measured m = measure(*way.embedder, way.batcher, spec, clients, batch, arguments.seconds);
          const bool is_batched = way.batcher != nullptr;
          char line[512];
          std::snprintf(
              line, sizeof line,
              "%s{\"clients\": %lld, \"batch\": %lld, \"lengths\": %s, \"padding\": \"%s\", \"batcher\": %s, \"requests\": %llu, "
              "\"texts_per_second\": %.6g, "
              "\"tokens_per_second\": %.6g, \"padding_share\": %.4g, \"p50_ms\": %.6g, \"p90_ms\": %.6g, \"p99_ms\": "
              "%.6g, \"max_ms\": %.6g}",
              lines.empty() ? "" : ", ", static_cast<long long>(m.clients), static_cast<long long>(m.batch), quoted(spec).c_str(),
              way.padding, is_batched ? "true" : "false", static_cast<unsigned long long>(m.requests), m.texts_per_second,
              m.tokens_per_second, m.padding_share, m.p50, m.p90, m.p99, m.most);
          lines += line;
          if (arguments.json) continue;
          std::printf("%7lld %6lld %-20s %-8s %9llu %10.1f %11.0f %7.1f%% %9.2f %9.2f %9.2f\n", static_cast<long long>(m.clients),
                      static_cast<long long>(m.batch), spec.c_str(), is_batched ? "batcher" : way.padding,
                      static_cast<unsigned long long>(m.requests), m.texts_per_second, m.tokens_per_second, 100 * m.padding_share,
                      m.p50, m.p90, m.p99);
          std::fflush(stdout);
        }
  if (arguments.json)
    std::printf(
        "{\"ok\": true, \"command\": \"mra-embed\", \"backend\": %s, \"backend_version\": %s, \"file\": %s, \"precision\": %s, "
        "\"device\": %s, \"cores\": %u, \"results\": [%s]}\n",
        quoted(info.backend).c_str(), quoted(info.backend_version).c_str(), quoted(info.file).c_str(),
        quoted(info.precision).c_str(), quoted(info.device).c_str(), std::thread::hardware_concurrency(), lines.c_str());
  return 0;
}

int run(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  if (arguments.bench)
    for (const std::string& spec : arguments.lengths) Lengths(spec, 1 << 20);  // before anything is loaded
  const Result<Embedder> opened = Embedder::open(arguments.bundle, arguments.options);
  if (!opened) return complain(opened.status());
  const mra::serving::Info& info = opened->info();
  if (arguments.verbose) {
    for (const std::string& reason : info.passed_over) std::fprintf(stderr, "mra-embed: passed over %s\n", reason.c_str());
    std::fprintf(stderr, "mra-embed: %s %s runs %s, %s (%s) on %s\n", info.backend.c_str(), info.backend_version.c_str(),
                 info.file.c_str(), info.precision.c_str(), info.native_operator ? "native operator" : "function body",
                 info.device.c_str());
    if (arguments.texts && !info.tokenizer.empty()) std::fprintf(stderr, "mra-embed: ids by %s\n", info.tokenizer.c_str());
  }
  return arguments.bench ? bench(*opened, arguments) : embed(*opened, arguments);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const UsageError& error) {
    std::fprintf(stderr, "mra-embed: %s\n", error.message.c_str());
    return 2;
  } catch (const Status& status) {
    return complain(status);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mra-embed: %s\n", error.what());
    return 1;
  }
}

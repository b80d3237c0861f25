// Embedder: chooses a variant of the bundle, checks texts, and shares them out to runs that need little padding.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "backend.h"
#include "bundle.h"
#include "check_ids.h"
#include "engine_check.h"
#include "failure.h"
#include "log.h"
#include "mra/serving.h"
#include "onnx_notes.h"
#include "shared_library.h"
#include "text_backend.h"
#include "text_tables.h"
#include "utf8.h"

namespace mra::serving {
namespace {

constexpr int kMaxParallelRuns = 1024;
constexpr std::int64_t kLeastStep = 8;  // of widths, where they shall be few; divides each family's length_step
constexpr std::int64_t kMaxHiddenSize = 1 << 20;

// One thread's share of the backend.
struct Slot {
  std::unique_ptr<Context> context;
  std::vector<float> vectors;  // of one run
};

// Hands each slot to one thread at a time. Slots are made when they are first needed, or all at once by reserve().
class Pool {
 public:
  Pool(Backend* backend, int slots, std::size_t vectors) : backend_(backend), max_slots_(slots), vectors_(vectors) {
    free_.reserve(static_cast<std::size_t>(slots));
  }

  void reserve() {
    while (made_ < max_slots_) {
      free_.push_back(make());
      ++made_;
    }
  }

  std::unique_ptr<Slot> take() {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      returned_.wait(lock, [&] { return !free_.empty() || made_ < max_slots_; });
      if (!free_.empty()) {
        std::unique_ptr<Slot> slot = std::move(free_.back());
        free_.pop_back();
        return slot;
      }
      ++made_;
    }
    try {
      return make();
    } catch (...) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        --made_;
      }
      returned_.notify_one();
      throw;
    }
  }

  void give_back(std::unique_ptr<Slot> slot) noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(std::move(slot));  // within the capacity that was reserved
    }
    returned_.notify_one();
  }

 private:
  std::unique_ptr<Slot> make() {
    auto slot = std::make_unique<Slot>();
    if (Status status = backend_->make_context(&slot->context); !status.ok()) throw Failure{std::move(status)};
    slot->vectors.resize(vectors_);
    return slot;
  }

  Backend* backend_;
  int max_slots_, made_ = 0;
  std::size_t vectors_;  // numbers of a run's
  std::vector<std::unique_ptr<Slot>> free_;
  std::mutex mutex_;
  std::condition_variable returned_;
};

struct Text {
  const std::int64_t* ids = nullptr;
  std::size_t size = 0;
};

// Texts [first, last) of an order, all padded to `width`.
struct Run {
  std::size_t first = 0, last = 0;
  std::int64_t width = 0;
};

// Before dlopen, or a runtime of which we ask it: a library that was cut off would end the process.
void check_whole(const std::string& library) {
  if (const std::string wrong = detail::cut_off(library); !wrong.empty())
    fail(Code::kInput, wrong + ". Copy it again, or build it again with `mra-export build`.");
}

// A library libmra_serving_<name>.so by what it hands out. Never closed: TensorRT, CUDA, OpenVINO and Python keep threads and
// callbacks in the process.
template <typename Library>
const Library& load_library(const std::string& name, const std::string& folder, const char* symbol, const char* build,
                            const char* remedy) {
  const std::string file = "libmra_serving_" + name + ".so", path = folder.empty() ? file : folder + "/" + file;
  if (!folder.empty()) check_whole(path);
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    fail(Code::kEnvironment, path + " cannot be loaded: " + (reason != nullptr ? reason : "no reason given") + remedy);
  }
  using Entry = const Library* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, symbol));
  const Library* library = entry != nullptr ? entry() : nullptr;
  if (library == nullptr || std::strcmp(library->build, build) != 0 || name != library->name)
    fail(Code::kEnvironment, path + " does not belong to this libmra_serving (" + build + "). Build the two together.");
  return *library;
}

const BackendLibrary& load_backend(const std::string& name, const std::string& folder) {
  return load_library<BackendLibrary>(
      name, folder, MRA_SERVING_BACKEND_ENTRY, kBackendBuild,
      name == "openvino"
          ? ". Build plugins/serving where OpenVINO is installed (-DMRA_SERVING_OPENVINO=ON), and keep that OpenVINO."
          : ". Build plugins/serving with -DMRA_SERVING_TENSORRT=ON, and install the TensorRT that it was linked with.");
}

}  // namespace

class Embedder::Impl {
 public:
  Impl(const std::string& directory, const Options& options) {
    check(options);
    bundle_ = read_bundle(directory, options.verify_files);
    if (options.max_batch_tokens < bundle_.max_seq_len)
      fail(Code::kInput, "max_batch_tokens=" + std::to_string(options.max_batch_tokens) + " must be at least the longest text's " +
                             std::to_string(bundle_.max_seq_len) + " tokens.");
    if (const std::int64_t most = std::max(bundle_.hidden_size, bundle_.dimension); most > kMaxHiddenSize)
      fail(Code::kInput, directory + " has vectors of " + std::to_string(most) + " numbers, more than the " +
                             std::to_string(kMaxHiddenSize) + " that are served.");
    check_notes();
    pad_to_longest_ = options.pad_to_longest;
    choose(options);
    limits_ = backend_->limits();
    describe(options);
    open_encoder(options);
  }

  void embed(const std::vector<Text>& texts, float* out) {
    check(texts);
    std::vector<std::size_t> order;
    const std::vector<Run> runs = plan(texts, &order);
    std::uint64_t tokens = 0, padded = 0;
    for (const Text& text : texts) tokens += text.size;
    for (const Run& run : runs) {
      std::unique_ptr<Slot> slot = pool_->take();
      const Status status = guarded([&] { padded += run_one(*slot, texts, order, run, out); });
      pool_->give_back(std::move(slot));
      if (!status.ok()) throw Failure{status};
    }
    texts_ += texts.size();
    tokens_ += tokens;
    padded_ += padded;
    runs_ += runs.size();
  }

  std::vector<std::vector<std::int64_t>> tokenize(const std::vector<std::string_view>& texts, const Prompt& prompt) const {
    if (encoder_ == nullptr)
      fail(Code::kInput,
           bundle_.directory + (bundle_.tokenizer_file.empty()
                                    ? " has no tokenizer. Give token ids, or Options::text_encoder."
                                    : " has no tables of its tokenizer. Open it with tokenizer=\"python\", or give token ids."));
    for (std::size_t i = 0; i < texts.size(); ++i)
      if (const std::size_t end = detail::end_of_utf8(texts[i]); end != texts[i].size())
        fail(Code::kInput, "Text " + std::to_string(i) + " is not UTF-8 from byte " + std::to_string(end) + " on.");
    const std::string& before = prompt_of(prompt);
    std::vector<std::vector<std::int64_t>> ids;
    Status status;
    if (before.empty()) {
      status = encoder_->encode(texts.data(), texts.size(), &ids);
    } else {
      std::vector<std::string> prompted;
      prompted.reserve(texts.size());
      for (const std::string_view text : texts) prompted.push_back(before + std::string(text));
      const std::vector<std::string_view> views(prompted.begin(), prompted.end());
      status = encoder_->encode(views.data(), views.size(), &ids);
    }
    if (!status.ok()) throw Failure{std::move(status)};
    if (ids.size() != texts.size())
      fail(Code::kInternal, std::string(encoder_->name()) + " gave ids of " + std::to_string(ids.size()) + " texts for " +
                                std::to_string(texts.size()) + ".");
    return ids;
  }

  const Info& info() const noexcept { return info_; }
  Counters counters() const noexcept { return {texts_, tokens_, padded_, runs_}; }
  // Numbers in a vector.
  std::size_t dimension() const noexcept {
    return static_cast<std::size_t>(bundle_.pooling.empty() ? bundle_.hidden_size : bundle_.dimension);
  }

 private:
  static void check(const Options& options) {
    const auto range = [](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
      if (value < low || value > high)
        fail(Code::kInput, std::string(name) + "=" + std::to_string(value) + " must be from " + std::to_string(low) + " to " +
                               std::to_string(high) + ".");
    };
    range("gpu", options.gpu, 0, 1023);
    range("threads", options.threads, 0, 1024);
    range("parallel_runs", options.parallel_runs, 0, kMaxParallelRuns);
    range("max_batch_tokens", options.max_batch_tokens, 1, std::int64_t{1} << 24);
    range("arena_bytes", options.arena_bytes, 0, std::int64_t{1} << 48);
  }

  // What manifest.json says of ids and lengths, held against what the exporter noted in the ONNX file. Engines are made from it, and
  // nothing else of theirs says what ids they take.
  void check_notes() {
    const std::string& file = bundle_.variants.front().file;
    const std::map<std::string, std::string> notes = detail::onnx_notes(file);
    const auto check = [&](const char* name, std::int64_t stated, bool is_limit) {
      const auto note = notes.find(name);
      if (note == notes.end()) return false;
      std::int64_t found = 0;
      const char* last = note->second.data() + note->second.size();
      const auto [end, error] = std::from_chars(note->second.data(), last, found);
      if (error != std::errc() || end != last)
        fail(Code::kInput, file + " notes " + name + "=" + note->second + ", which is no number. Export it again.");
      if (is_limit ? stated > found : stated != found)
        fail(Code::kInput, "manifest.json says " + std::string(name) + "=" + std::to_string(stated) + ", and " + file +
                               " is a model of " + std::to_string(found) + ". Write the bundle again with `mra-export bundle`.");
      return true;
    };
    check("vocab_size", bundle_.vocab_size, false);
    check("pad_token_id", bundle_.pad_token_id, false);
    check("length_step", bundle_.length_step, false);
    is_length_noted_ = check("max_seq_len", bundle_.max_seq_len, true);
  }

  // Most texts of one run. Shorter ones than a block do not make it larger: the memory for vectors is bounded.
  static std::int64_t most_rows(const Limits& limits, std::int64_t length_step, std::int64_t width) {
    const std::int64_t least = std::min(length_step, limits.max_width);
    return std::max<std::int64_t>(1, std::min(limits.max_rows, limits.max_tokens / std::max(width, least)));
  }

  // Tokens to which a run is padded whose longest text has `length`: no more than the backend needs, and never into another block.
  std::int64_t padded_width(std::int64_t length) const {
    const std::int64_t width = std::max(length, limits_.min_width);
    // With few shapes at most an eighth, or 7 tokens. As mra_export/embedding/batching.py does it.
    std::int64_t step = limits_.few_shapes ? kLeastStep : limits_.width_step;
    while (limits_.few_shapes && step < bundle_.length_step && step * 16 <= width) step *= 2;
    return std::min((width + step - 1) / step * step, limits_.max_width);
  }

  // Whether a variant is an engine.
  static bool needs_gpu(const Variant& variant) { return variant.backend == "tensorrt" || variant.backend == "rtx"; }

  // Whether this machine can run a variant; if so backend_, pool_ and info_ are set, else the Status says why not.
  Status try_variant(const Variant& variant, const Options& options) {
    return guarded([&] {
      Request request;
      request.file = variant.file;
      request.library = variant.library;
      request.precision = variant.precision;
      request.backend_version = variant.backend_version;
      request.has_types = std::find(bundle_.inputs.begin(), bundle_.inputs.end(), "token_type_ids") != bundle_.inputs.end();
      request.mean_of_tokens = bundle_.pooling.empty();
      request.output = request.mean_of_tokens ? "last_hidden_state" : "sentence_embedding";
      request.hidden_size = static_cast<std::int64_t>(dimension());
      request.vocab_size = bundle_.vocab_size;
      request.pad_token_id = bundle_.pad_token_id;
      request.length_step = bundle_.length_step;
      request.max_seq_len = bundle_.max_seq_len;
      request.is_length_noted = is_length_noted_;
      request.max_batch_tokens = options.max_batch_tokens;
      request.gpu = options.gpu;
      const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
      const bool is_engine = needs_gpu(variant), is_openvino = variant.backend == "openvino";
      const int few = is_engine ? 2 : is_openvino ? std::min(2, cores) : cores;
      const int parallel_runs = options.parallel_runs > 0 ? options.parallel_runs : few;
      info_.parallel_runs = parallel_runs;
      request.threads = options.threads;
      request.parallel_runs = parallel_runs;
      request.cuda_graphs = options.cuda_graphs;
      request.onnxruntime_env = options.onnxruntime_env;
      request.shared_threads = options.shared_threads;
      request.arena_bytes = options.arena_bytes;
      if (!request.library.empty()) check_whole(request.library);
      Status status;
      std::unique_ptr<Backend> backend;
      if (!is_engine && !is_openvino) {
        request.use_gpu = options.device == Device::kGpu;
        request.threads = options.threads > 0 ? options.threads : cores;
        status = open_onnxruntime(request, &backend);
      } else if (is_openvino) {
        status = load_backend(variant.backend, options.backend_dir).open(request, &backend);
      } else {
        const BackendLibrary& library = load_backend(variant.backend, options.backend_dir);
        Machine machine;
        machine.backend = variant.backend;
        machine.plugin = variant.library;
        status = library.machine(options.gpu, &machine.backend_version, &machine.compute_capability);
        if (!status.ok()) throw Failure{std::move(status)};
        Manifest manifest;
        if (std::string error = check_engine(variant.file, machine, &manifest); !error.empty()) fail(Code::kEnvironment, error);
        if (manifest.weights_stripped)
          fail(Code::kInput, variant.file + " was built with --strip-weights and cannot run before it is refitted.");
        request.carries_plugin = manifest.plugin_embedded;
        request.plugin_name = manifest.plugin_name;
        request.plugin_version = manifest.plugin_version;
        if (!manifest.plugin_name.empty() && !manifest.plugin_embedded && request.library.empty())
          fail(Code::kInput,
               variant.file + " needs the plugin " + manifest.plugin_name + ", and the bundle names no library for it.");
        status = library.open(request, &backend);
      }
      if (!status.ok()) throw Failure{std::move(status)};
      const Limits limits = backend->limits();
      const std::int64_t rows = most_rows(limits, bundle_.length_step, 1);
      auto pool = std::make_unique<Pool>(backend.get(), parallel_runs, static_cast<std::size_t>(rows * request.hidden_size));
      if (is_engine) pool->reserve();  // memory that a GPU lacks is missed now, not in the middle of the night
      backend_ = std::move(backend);
      pool_ = std::move(pool);
      info_.backend = variant.backend;
      info_.file = variant.name;
      info_.precision = variant.precision;
      info_.native_operator = is_engine || !variant.library.empty();
    });
  }

  void choose(const Options& options) {
    if (bundle_.pooling.empty() && (!options.mean_of_tokens || bundle_.task != "feature-extraction"))
      fail(Code::kInput, bundle_.directory + " gives no embeddings: its task is " + bundle_.task + ", without pooling. " +
                             (bundle_.task == "feature-extraction" ? "Set mean_of_tokens, or w" : "W") +
                             "rite the bundle again with `mra-export bundle --pooling mean`.");
    bool is_known = options.variant.empty();
    Status last;
    // Engines first, then OpenVINO, in the manifest's order; the ONNX file is its first entry.
    std::vector<const Variant*> order;
    for (std::size_t i = 1; i <= bundle_.variants.size(); ++i) order.push_back(&bundle_.variants[i % bundle_.variants.size()]);
    for (const Variant* variant : order) {
      const bool is_named = options.variant == variant->backend || options.variant == variant->name;
      if (!options.variant.empty() && !is_named) continue;
      is_known = true;
      if (needs_gpu(*variant) && options.device == Device::kCpu)
        last = {Code::kInput, variant->name + " needs a GPU, and the device cpu was asked for."};
      else if (variant->backend == "openvino" && options.device == Device::kGpu)
        last = {Code::kInput, variant->name + " runs on the CPU, and the device gpu was asked for."};
      else
        last = try_variant(*variant, options);
      if (last.ok()) return;
      detail::log(LogLevel::kWarning, "passed over " + variant->name + ": " + last.message);
      info_.passed_over.push_back(variant->name + ": " + last.message);
      // An ONNX file that does not load is no reason to look on: nothing else runs on every machine.
    }
    if (!is_known) {
      std::string known;
      for (const Variant& variant : bundle_.variants)
        known += (known.empty() ? "" : ", ") + variant.name + " (" + variant.backend + ")";
      fail(Code::kInput, "variant='" + options.variant + "' is not in " + bundle_.directory + ". It has " + known + ".");
    }
    if (info_.passed_over.size() > 1) {
      last.message = "No variant of " + bundle_.directory + " can be run here.";
      for (const std::string& reason : info_.passed_over) last.message += " " + reason;
    }
    throw Failure{last};
  }

  void describe(const Options& options) {
    info_.backend_version = backend_->version();
    info_.device = backend_->device();
    info_.architecture = bundle_.architecture;
    info_.length_step = bundle_.length_step;
    info_.max_batch_tokens = limits_.max_tokens;
    info_.max_batch_texts = limits_.max_rows;
    info_.hidden_size = bundle_.hidden_size;
    info_.dimension = static_cast<std::int64_t>(dimension());
    info_.max_seq_len = std::min(bundle_.max_seq_len, limits_.max_width);
    info_.vocab_size = bundle_.vocab_size;
    info_.pooling = bundle_.pooling.empty() && options.mean_of_tokens ? "mean of tokens" : bundle_.pooling;
    info_.normalized = bundle_.normalize;
    info_.similarity = bundle_.similarity;
    info_.prompts = bundle_.prompts;
    info_.default_prompt = bundle_.default_prompt;
    info_.include_prompt = bundle_.include_prompt;
    info_.max_length = std::min(bundle_.max_length, info_.max_seq_len);
    info_.truncation_side = bundle_.truncation_side;
    info_.tokenizer_file = bundle_.tokenizer_file;
  }

  void open_encoder(const Options& options) {
    const std::string& wanted = options.tokenizer;
    if (!wanted.empty() && wanted != "tables" && wanted != "python")
      fail(Code::kInput, "tokenizer='" + wanted + "' must be tables, python or empty.");
    if (options.text_encoder != nullptr) {
      if (!wanted.empty()) fail(Code::kInput, "Both tokenizer='" + wanted + "' and a text_encoder are given. Give one of them.");
      encoder_ = options.text_encoder;
    } else {
      const TextRequest request{bundle_.tokenizer_file, bundle_.tables_file, info_.max_length, bundle_.truncation_side == "left",
                                bundle_.vocab_size,     options.python_site};
      if (!wanted.empty() && request.file.empty())
        fail(Code::kInput, bundle_.directory + " has no tokenizer, so that tokenizer='" + wanted + "' has nothing to read.");
      if (wanted == "python") {
        const TextLibrary& library = load_library<TextLibrary>(
            wanted, options.backend_dir, MRA_SERVING_TEXT_ENTRY, kTextBuild,
            ". Build plugins/serving where Python's headers are (-DMRA_SERVING_PYTHON=ON), and keep that Python.");
        if (Status status = library.open(request, &encoder_); !status.ok()) throw Failure{std::move(status)};
      } else if (!request.tables.empty()) {
        encoder_ = open_tables(request);
      } else if (wanted == "tables") {
        fail(Code::kInput, bundle_.directory +
                               " has no tables of its tokenizer. Take tokenizer=\"python\", or write the bundle "
                               "again with `mra-export bundle`, which says why where there can be none.");
      }
    }
    if (encoder_ != nullptr) info_.tokenizer = encoder_->name();
    detail::log(LogLevel::kInfo, info_.backend + " " + info_.backend_version + " runs " + bundle_.directory + "/" + info_.file +
                                     ", " + info_.precision + " (" + (info_.native_operator ? "native operator" : "function body") +
                                     ") on " + info_.device + (info_.tokenizer.empty() ? "" : ", ids by " + info_.tokenizer));
  }

  // What is put before each text. The names "query" and "document" are known of every model, as in sentence-transformers.
  const std::string& prompt_of(const Prompt& prompt) const {
    static const std::string nothing;
    const std::string* found = &nothing;
    if (prompt.text) {
      if (prompt.name)
        fail(Code::kInput, "Both the prompt '" + *prompt.name + "' by name and a prompt's text are given. Give one of them.");
      if (const std::size_t end = detail::end_of_utf8(*prompt.text); end != prompt.text->size())
        fail(Code::kInput, "The prompt is not UTF-8 from byte " + std::to_string(end) + " on.");
      found = &*prompt.text;
    } else if (prompt.name || bundle_.default_prompt) {
      const std::string& name = prompt.name ? *prompt.name : *bundle_.default_prompt;
      const auto known = bundle_.prompts.find(name);
      if (known != bundle_.prompts.end()) {
        found = &known->second;
      } else if (name != "query" && name != "document") {
        std::string names;
        for (const auto& entry : bundle_.prompts) names += (names.empty() ? "" : ", ") + entry.first;
        fail(Code::kInput, "There is no prompt '" + name + "'. The model has " + (names.empty() ? "none" : names) + ".");
      }
    }
    if (!found->empty() && !bundle_.include_prompt)
      fail(Code::kInput, bundle_.directory +
                             " has include_prompt=false: the tokens of a prompt must not count in the pooling, but "
                             "they do where a model pools by itself. Use `mra-export embed`, or an empty prompt.");
    return *found;
  }

  void check(const std::vector<Text>& texts) const {
    for (std::size_t row = 0; row < texts.size(); ++row)
      detail::check_ids(row, texts[row].ids, texts[row].size, info_.max_seq_len, bundle_.vocab_size);
  }

  // Of `count` texts, how many one run takes where runs shall have few sizes: a power of two, or one and a half times that.
  static std::size_t one_size(std::size_t count) {
    std::size_t power = 1;
    while (power * 2 <= count) power *= 2;
    return power + power / 2 <= count ? power + power / 2 : power;
  }

  // Texts with the same number of blocks share runs, the longest texts first; a group that needs several runs is divided evenly,
  // or into runs of one_size(), and a run is as wide as its longest text. As mra_export/embedding/batching.py does it.
  std::vector<Run> plan(const std::vector<Text>& texts, std::vector<std::size_t>* order) const {
    const auto length = [&](std::size_t text) { return static_cast<std::int64_t>(texts[text].size); };
    const auto blocks = [&](std::size_t text) {
      return pad_to_longest_ ? 0 : (length(text) + bundle_.length_step - 1) / bundle_.length_step;
    };
    for (std::size_t i = 0; i < texts.size(); ++i) order->push_back(i);
    std::stable_sort(order->begin(), order->end(), [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
    std::vector<Run> runs;
    for (std::size_t first = 0; first < order->size();) {
      std::size_t last = first;
      while (last < order->size() && blocks((*order)[last]) == blocks((*order)[first])) ++last;
      const std::int64_t width = padded_width(length((*order)[first]));
      const auto most = static_cast<std::size_t>(most_rows(limits_, bundle_.length_step, width));
      if (limits_.few_shapes) {
        for (std::size_t begin = first; begin < last; begin = runs.back().last)
          runs.push_back({begin, begin + one_size(std::min(most, last - begin)),
                          pad_to_longest_ ? width : padded_width(length((*order)[begin]))});
        first = last;
        continue;
      }
      const std::size_t count = last - first, parts = (count + most - 1) / most;
      for (std::size_t part = 0; part < parts; ++part) {
        const std::size_t begin = first + count * part / parts;
        runs.push_back(
            {begin, first + count * (part + 1) / parts, pad_to_longest_ ? width : padded_width(length((*order)[begin]))});
      }
      first = last;
    }
    return runs;
  }

  // The number of tokens that were run.
  std::uint64_t run_one(Slot& slot, const std::vector<Text>& texts, const std::vector<std::size_t>& order, const Run& run,
                        float* out) {
    const auto wanted = static_cast<std::int64_t>(run.last - run.first);
    const std::int64_t rows = slot.context->padded_rows(wanted);
    const Buffers buffers = slot.context->buffers();
    for (std::int64_t row = 0; row < rows; ++row) {
      std::int64_t* ids = buffers.ids + row * run.width;
      std::int64_t* mask = buffers.mask + row * run.width;
      // Rows that only fill the batch hold one padding token that counts as a token: no row is without any.
      const std::size_t size = row < wanted ? texts[order[run.first + static_cast<std::size_t>(row)]].size : 0;
      if (size > 0) std::memcpy(ids, texts[order[run.first + static_cast<std::size_t>(row)]].ids, size * sizeof(std::int64_t));
      std::fill(ids + size, ids + run.width, bundle_.pad_token_id);
      std::fill(mask, mask + run.width, 0);
      std::fill(mask, mask + std::max<std::size_t>(size, 1), 1);
    }
    if (Status status = slot.context->run(rows, run.width, wanted, slot.vectors.data()); !status.ok())
      throw Failure{std::move(status)};
    const std::size_t numbers = dimension();
    for (std::size_t i = run.first; i < run.last; ++i)
      std::memcpy(out + order[i] * numbers, slot.vectors.data() + (i - run.first) * numbers, numbers * sizeof(float));
    return static_cast<std::uint64_t>(rows * run.width);
  }

  Bundle bundle_;
  Info info_;
  bool pad_to_longest_ = false, is_length_noted_ = false;
  Limits limits_;
  std::unique_ptr<Backend> backend_;  // before pool_, whose contexts use it
  std::unique_ptr<Pool> pool_;
  std::shared_ptr<const TextEncoder> encoder_;  // null where texts are refused
  std::atomic<std::uint64_t> texts_{0}, tokens_{0}, padded_{0}, runs_{0};
};

Embedder::Embedder(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Embedder::Embedder(Embedder&&) noexcept = default;
Embedder& Embedder::operator=(Embedder&&) noexcept = default;
Embedder::~Embedder() = default;

Result<Embedder> Embedder::open(const std::string& directory, const Options& options) noexcept {
  std::unique_ptr<Impl> impl;
  if (Status status = guarded([&] { impl = std::make_unique<Impl>(directory, options); }); !status.ok())
    return Result<Embedder>(std::move(status));
  return Embedder(std::move(impl));
}

Result<Matrix> Embedder::embed(const std::vector<std::vector<std::int64_t>>& texts) const noexcept {
  Matrix matrix;
  Status status = guarded([&] {
    if (impl_ == nullptr) fail(Code::kInput, "This Embedder was moved away; nothing is open.");
    std::vector<Text> rows;
    rows.reserve(texts.size());
    for (const std::vector<std::int64_t>& text : texts) rows.push_back({text.data(), text.size()});
    matrix.rows = texts.size();
    matrix.columns = impl_->dimension();
    matrix.values.resize(matrix.rows * matrix.columns);
    impl_->embed(rows, matrix.values.data());
  });
  if (!status.ok()) return Result<Matrix>(std::move(status));
  return Result<Matrix>(std::move(matrix));
}

Status Embedder::embed(const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out) const noexcept {
  return guarded([&] {
    if (impl_ == nullptr) fail(Code::kInput, "This Embedder was moved away; nothing is open.");
    if (texts > 0 && (ids == nullptr || lengths == nullptr || out == nullptr))
      fail(Code::kInput, "ids, lengths and out must not be null where there are texts.");
    std::vector<Text> rows;
    rows.reserve(texts);
    for (std::size_t i = 0; i < texts; ++i) {
      rows.push_back({ids, lengths[i]});
      // A length that cannot be is refused below, before anything is read there.
      if (lengths[i] <= static_cast<std::size_t>(impl_->info().max_seq_len)) ids += lengths[i];
    }
    impl_->embed(rows, out);
  });
}

Result<Matrix> Embedder::embed_texts(const std::vector<std::string_view>& texts, const Prompt& prompt) const noexcept {
  const Result<std::vector<std::vector<std::int64_t>>> ids = tokenize(texts, prompt);
  return ids ? embed(*ids) : Result<Matrix>(ids.status());
}

Result<std::vector<std::vector<std::int64_t>>> Embedder::tokenize(const std::vector<std::string_view>& texts,
                                                                  const Prompt& prompt) const noexcept {
  std::vector<std::vector<std::int64_t>> ids;
  Status status = guarded([&] {
    if (impl_ == nullptr) fail(Code::kInput, "This Embedder was moved away; nothing is open.");
    ids = impl_->tokenize(texts, prompt);
  });
  if (!status.ok()) return Result<std::vector<std::vector<std::int64_t>>>(std::move(status));
  return Result<std::vector<std::vector<std::int64_t>>>(std::move(ids));
}

const Info& Embedder::info() const noexcept {
  static const Info nothing;
  return impl_ != nullptr ? impl_->info() : nothing;
}

Counters Embedder::counters() const noexcept { return impl_ != nullptr ? impl_->counters() : Counters{}; }

Status verify_bundle(const std::string& directory, bool verify_files) noexcept {
  return guarded([&] { read_bundle(directory, verify_files); });
}

const char* version() noexcept { return MRA_SERVING_VERSION; }

}  // namespace mra::serving

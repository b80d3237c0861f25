// Serves a bundle that `mra-export bundle` wrote: texts or token ids in, one vector a text out. The header of the library
// mra_serving; mra/batcher.h has the batcher across callers, mra_serving.h the same for C.
//
//   auto opened = mra::serving::Embedder::open("./bundle");
//   if (!opened) return complain(opened.status().message);
//   auto vectors = opened->embed_texts({"The ferry leaves at seven.", "Boats depart early."});
//   if (vectors) use(vectors->row(0), vectors->columns);
//
// No function throws: whatever goes wrong, out of memory included, comes back as a Status. An Embedder may be used by any
// number of threads at once. No type of ONNX Runtime, OpenVINO, TensorRT or CUDA is seen here.
//
// Messages quote files and manifests; control characters in them are escaped, so that they may go to a terminal or a log.
//
// ONNX Runtime's telemetry is off: the first open() sets ORT_DISABLE_TELEMETRY=1 in the environment of the process, unless it is
// set there to something already. setenv() must not run beside other threads that read the environment: where such threads are
// there before the first open(), set the variable yourself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(MRA_SERVING_SHARED)
#define MRA_SERVING_API __attribute__((visibility("default")))
#else
#define MRA_SERVING_API
#endif

namespace mra::serving {

// The numbers below 16 are the exit codes of mra-export and mra-embed.
enum class Code : int {
  kOk = 0,
  kInternal = 1,     // a bug, or the machine ran out of memory
  kInput = 2,        // the bundle, an option or a text is not as it must be
  kEnvironment = 4,  // a library or a GPU is missing
  // Of the batcher, mra/batcher.h:
  kFull = 16,       // too many texts wait: ask again later
  kDeadline = 17,   // the request's deadline passed before it was answered
  kCancelled = 18,  // by the caller
  kStopped = 19,    // the batcher was stopped
};

// What became of a call. `message` says what is wrong with the values and what to do; it is empty where all is well.
struct Status {
  Code code = Code::kOk;
  std::string message;

  bool ok() const noexcept { return code == Code::kOk; }
};

// A value, or the Status that says why there is none. As with std::optional, *r and r-> of a Result without a value are
// undefined: ask `if (r)` first.
template <typename T>
class Result {
 public:
  Result(T value) noexcept : value_(std::move(value)) {}
  Result(Status status) noexcept : status_(std::move(status)) {}

  explicit operator bool() const noexcept { return value_.has_value(); }
  const Status& status() const noexcept { return status_; }
  T& operator*() noexcept { return *value_; }
  const T& operator*() const noexcept { return *value_; }
  T* operator->() noexcept { return &*value_; }
  const T* operator->() const noexcept { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

// Vectors, one a row: float32 [rows, columns], row-major.
struct Matrix {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::vector<float> values;

  const float* row(std::size_t i) const noexcept { return values.data() + i * columns; }
};

// Makes token ids of texts. Any number of threads may use one at once.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  // Ids of each of `count` texts, UTF-8, prompts included: with the special tokens in their places, and cut to the longest text that
  // the model takes.
  virtual Status encode(const std::string_view* texts, std::size_t count,
                        std::vector<std::vector<std::int64_t>>* ids) const noexcept = 0;
  // What it is, for people: "tables of WordPiece", "tokenizers 0.23.1 in Python 3.11.2".
  virtual const char* name() const noexcept = 0;
};

// What is put before each text of a call: by default the bundle's default prompt, if it has one.
struct Prompt {
  std::optional<std::string> name;  // of Info::prompts
  std::optional<std::string> text;  // the prompt itself, empty for none; not both
};

enum class Device {
  kAuto,  // an engine that this machine can run, else as kCpu
  kCpu,   // OpenVINO where the bundle has a file for it and it is here, else ONNX Runtime
  kGpu,   // an engine, else ONNX Runtime's CUDA provider; an error where neither can be used
};

struct Options {
  Device device = Device::kAuto;
  // Which variant of the bundle to run: its backend ("onnxruntime", "openvino", "tensorrt", "rtx") or its file ("engines/fp16.engine").
  // Empty: the first that `device` and the machine allow.
  std::string variant;
  int gpu = 0;  // number of the GPU, as CUDA counts
  // On the CPU: threads that share one run. 0: one a core for ONNX Runtime, an equal share of the cores for OpenVINO.
  int threads = 0;
  // Runs at the same time; further calls wait. Each needs memory of its own, for engines reserved when the bundle is opened.
  // With OpenVINO these are its streams. 0: 2 for engines and for OpenVINO, one a core for ONNX Runtime.
  int parallel_runs = 0;
  // Most tokens of one run, padding included; bounds the memory of a run. At least the longest text's, else opening fails.
  std::int64_t max_batch_tokens = 8192;
  // Engines: keep a CUDA graph for each shape (up to 16 for each of `parallel_runs`); batches are filled up to powers of two.
  bool cuda_graphs = false;
  // Hash every file of the bundle against its manifest. Leave it on, unless the bundle lies on storage that verifies itself.
  bool verify_files = true;
  // For a bundle without pooling: take the mean of the hidden states over a text's tokens. Without it such a bundle is refused.
  bool mean_of_tokens = false;
  // Pad each call's texts to the longest of them, as clients without length handling do, instead of running only texts with the
  // same number of blocks together. For comparison: it is slower, and a vector then depends on the other texts of the call.
  bool pad_to_longest = false;
  // Folder of libmra_serving_openvino.so, libmra_serving_tensorrt.so, libmra_serving_rtx.so and libmra_serving_python.so. Empty: where
  // the loader finds libraries.
  std::string backend_dir;
  // What makes token ids of texts: "tables", those of the bundle, without Python; "python", Hugging Face's tokenizers, for every kind
  // of tokenizer, by libmra_serving_python.so, which starts Python in this process, or takes the one that it runs. Empty: the tables
  // where the bundle has them, else nothing, and texts are refused. Each gives the ids of the model's own tokenizer.
  std::string tokenizer;
  // With "python": the folder that the package tokenizers is in. Empty: MRA_SERVING_PYTHON_SITE of the environment, else the one that
  // was found when libmra_serving_python.so was built.
  std::string python_site;
  // An encoder of your own instead of these. It is to obey Info::max_length and truncation_side; prompts come with the texts.
  std::shared_ptr<const TextEncoder> text_encoder;
  // ONNX Runtime: the program's own OrtEnv, which is to outlive the Embedder. Null: the library's, one for the process.
  void* onnxruntime_env = nullptr;
  // ONNX Runtime: run on the threads of the environment, which all its sessions share, and not on threads of this model's own. The
  // program's environment must have such; the library's has them, `threads` many, where the first Embedder of the process asks for it.
  bool shared_threads = false;
  // ONNX Runtime on the CPU: most bytes of the arena that runs take their memory from, shared by all Embedders that state it; a run
  // that needs more is an error. The first one's counts in its environment. 0: arenas of their own, which grow as they need.
  std::int64_t arena_bytes = 0;
};

// What was opened.
struct Info {
  std::string backend;           // "onnxruntime", "openvino", "tensorrt" or "rtx"
  std::string backend_version;   // of the library that runs it
  std::string device;            // "cpu", or the name of the GPU
  std::string file;              // of the variant, inside the bundle
  std::string precision;         // fp32, fp16, bf16 or int8; with OpenVINO also int8-weights
  bool native_operator = false;  // whether the native operator runs, not its function body
  std::string architecture;
  std::int64_t hidden_size = 0;  // numbers in the vector of a token
  std::int64_t dimension = 0;    // numbers in the vector of a text
  std::int64_t max_seq_len = 0;  // most tokens of a text, special tokens included
  std::int64_t vocab_size = 0;   // ids are 0 to this, excluded
  std::int64_t length_step = 0;  // tokens of a block: texts with the same number of blocks share runs
  std::string pooling;           // "mean", "cls+max" ...; "mean of tokens" where Options::mean_of_tokens made it
  bool normalized = false;       // whether vectors have length 1
  std::string similarity;        // that vectors are made for: "cosine", "dot", "euclidean", "manhattan"; empty where it is not said
  std::string tokenizer;         // what embed_texts() makes token ids with; empty where there is nothing
  int parallel_runs = 0;         // runs that there may be at the same time
  std::int64_t max_batch_tokens = 0;  // most tokens of one run, padding included
  std::int64_t max_batch_texts = 0;   // and most texts
  // What embed_texts() obeys, and who tokenizes by tokenizer_file has to: a prompt before each text, cut to max_length tokens.
  std::map<std::string, std::string> prompts;  // name -> what is put before a text
  std::optional<std::string> default_prompt;   // name of the one that is meant where none is asked for
  bool include_prompt = true;                  // if false, a prompt's tokens must not count, which they do here: give no prompt
  std::int64_t max_length = 0;                 // tokens to which a text is cut, special tokens included
  std::string truncation_side;                 // "left" or "right", where a text that is too long loses tokens
  std::string tokenizer_file;                  // path of tokenizer.json, or empty
  std::vector<std::string> passed_over;        // variants that were not taken, and why
};

// Counts since the bundle was opened.
struct Counters {
  std::uint64_t texts = 0;
  std::uint64_t tokens = 0;         // of the texts
  std::uint64_t padded_tokens = 0;  // that were run: the texts', and padding
  std::uint64_t runs = 0;
};

// Numbers of a vector, as `mra-export embed --output-type` has them.
enum class Numbers {
  kFloat32,
  kFloat16,  // IEEE binary16, the nearest one
  kInt8,     // round(127 * number / the largest absolute value of its vector), half to even; that value / 127 is its scale
};

enum class LogLevel { kInfo, kWarning, kError };
using LogFunction = std::function<void(LogLevel, const std::string&)>;

// embed(), embed_texts(), tokenize(), info() and counters() are const and may be called by any number of threads at once. Assigning to an Embedder, moving
// from it and destroying it are not: no call may be under way then, and no reference to info() be kept. To replace one that
// others use, hand it out as a std::shared_ptr<const Embedder>, and put the new one into the pointer's place: calls under way
// keep the old one until they are done. examples/cpp/serving/replace.cc does that.
class MRA_SERVING_API Embedder {
 public:
  // Reads and verifies the bundle in `directory`, chooses a variant and loads it.
  static Result<Embedder> open(const std::string& directory, const Options& options = {}) noexcept;

  Embedder(Embedder&&) noexcept;
  Embedder& operator=(Embedder&&) noexcept;
  ~Embedder();

  // One vector a text, in the order of the texts; no text needs another one beside it. `texts` are token ids with the special
  // tokens in their places, as the model's tokenizer gives them; none is empty or longer than max_seq_len.
  Result<Matrix> embed(const std::vector<std::vector<std::int64_t>>& texts) const noexcept;

  // The same without containers: `ids` holds the texts one after the other, `lengths` [texts] their numbers of tokens, and
  // the vectors go to `out` [texts, dimension]. After an error, what `out` holds is not defined.
  Status embed(const std::int64_t* ids, const std::size_t* lengths, std::size_t texts, float* out) const noexcept;

  // One vector a text, in the order of the texts, each UTF-8: tokenize() and embed().
  Result<Matrix> embed_texts(const std::vector<std::string_view>& texts, const Prompt& prompt = {}) const noexcept;

  // Token ids of texts as the bundle says: the prompt before each, special tokens in their places, cut to Info::max_length.
  Result<std::vector<std::vector<std::int64_t>>> tokenize(const std::vector<std::string_view>& texts,
                                                          const Prompt& prompt = {}) const noexcept;

  // Both stay valid as long as the Embedder. Of an Embedder that was moved away, info() is empty.
  const Info& info() const noexcept;
  Counters counters() const noexcept;

 private:
  class Impl;
  explicit Embedder(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

// Reads and verifies the bundle in `directory` and loads nothing of it. With `verify_files` false, only the manifest is read.
MRA_SERVING_API Status verify_bundle(const std::string& directory, bool verify_files = true) noexcept;

// Writes vectors [rows, columns] as other numbers to `out` [rows, columns], and for int8 their scales [rows]; else `scales` may be null.
// Code::kInput where a value is not finite, or too large for float16.
MRA_SERVING_API Status convert(const float* vectors, std::size_t rows, std::size_t columns, Numbers numbers, void* out,
                               float* scales = nullptr) noexcept;

// What the library and ONNX Runtime say while they work goes to `log`, from any thread; null for nobody, as it is before. One for the
// process. Of ONNX Runtime, what models that are opened after it warn of.
MRA_SERVING_API Status set_log(LogFunction log) noexcept;

// The library's version, "0.1.0".
MRA_SERVING_API const char* version() noexcept;

}  // namespace mra::serving

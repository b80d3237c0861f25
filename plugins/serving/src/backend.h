// What a backend is to the rest of the library. Nothing here throws: a backend may live in a library of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mra/serving.h"

namespace mra::serving {

// Sizes that a backend can run.
struct Limits {
  std::int64_t max_rows = 0;
  std::int64_t max_width = 0;
  std::int64_t max_tokens = 0;  // rows * width of one run
  std::int64_t min_width = 1;   // narrower runs are filled up to it; not above length_step
  std::int64_t width_step = 1;  // and all of them to the next multiple of it, or to max_width
  bool few_shapes = false;      // whether runs shall have few sizes: each costs time and memory when it comes for the first time
};

// Token ids and mask of one run, int64 [rows, width], in memory that the context owns: the caller fills it in.
struct Buffers {
  std::int64_t* ids = nullptr;
  std::int64_t* mask = nullptr;
};

// What one thread needs to run the model; used by one thread at a time.
class Context {
 public:
  virtual ~Context() = default;
  virtual Buffers buffers() noexcept = 0;  // room for Limits::max_tokens each
  // Rows to fill in for `rows` texts, at least as many: the further ones hold any text, of one token or more.
  virtual std::int64_t padded_rows(std::int64_t rows) const noexcept = 0;
  // Runs what the buffers hold and writes the first `wanted` of `rows` vectors to `out` [wanted, hidden_size].
  virtual Status run(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) noexcept = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* version() const noexcept = 0;
  virtual const char* device() const noexcept = 0;
  virtual Limits limits() const noexcept = 0;
  virtual Status make_context(std::unique_ptr<Context>* context) noexcept = 0;
};

// What a backend needs to know of the bundle.
struct Request {
  std::string file;                         // of the model
  std::string library;                      // the native operator; empty for none
  std::string precision;                    // that manifest.json says of it
  std::string backend_version;              // OpenVINO: the release that `library` is for
  std::string plugin_name, plugin_version;  // of an engine whose plugin is in `library`
  bool carries_plugin = false;              // whether an engine has its plugin within
  bool has_types = false;
  std::string output;            // name of the output to take
  bool mean_of_tokens = false;   // whether `output` is [rows, width, hidden_size] and is to be averaged over a row's tokens
  std::int64_t hidden_size = 0;  // numbers in a vector of `output`, which may be another width than the model's
  std::int64_t vocab_size = 0;
  std::int64_t pad_token_id = 0;
  std::int64_t length_step = 1;  // tokens of a block: a run may not be filled up into more blocks than its texts have
  std::int64_t max_seq_len = 0;
  bool is_length_noted = false;  // whether the file of the model says that it takes texts of max_seq_len
  std::int64_t max_batch_tokens = 0;
  int gpu = 0;
  bool use_gpu = false;   // ONNX Runtime: its CUDA provider
  int threads = 0;        // of a run; 0: the backend's choice
  int parallel_runs = 0;  // contexts that there may be
  // ONNX Runtime, as Options has them:
  void* onnxruntime_env = nullptr;
  bool shared_threads = false;
  std::int64_t arena_bytes = 0;
  bool cuda_graphs = false;
};

// The mean over each row's tokens of states [rows, width, hidden_size], where mask [rows, width] is 1: out [rows, hidden_size].
inline void mean_over_tokens(const float* states, const std::int64_t* mask, std::int64_t rows, std::int64_t width,
                             std::int64_t hidden_size, float* out) noexcept {
  for (std::int64_t row = 0; row < rows; ++row, mask += width, states += width * hidden_size, out += hidden_size) {
    double count = 0;
    for (std::int64_t t = 0; t < width; ++t) count += static_cast<double>(mask[t]);
    for (std::int64_t d = 0; d < hidden_size; ++d) {
      double sum = 0;
      for (std::int64_t t = 0; t < width; ++t)
        if (mask[t] != 0) sum += static_cast<double>(states[t * hidden_size + d]);
      out[d] = static_cast<float>(sum / count);
    }
  }
}

Status open_onnxruntime(const Request& request, std::unique_ptr<Backend>* backend) noexcept;

// What a library libmra_serving_<backend>.so hands out.
struct BackendLibrary {
  const char* build;  // must be kBackendBuild of the library that loads it
  const char* name;   // "tensorrt", "rtx" or "openvino"
  // What a variant is checked against: version of the runtime; compute capability of the GPU, where it runs on one.
  Status (*machine)(int gpu, std::string* version, std::string* compute_capability) noexcept;
  Status (*open)(const Request& request, std::unique_ptr<Backend>* backend) noexcept;
};

#define MRA_SERVING_BACKEND_ENTRY "mra_serving_backend"
inline constexpr const char* kBackendBuild = "mra_serving 0.1.0 backend 4";

}  // namespace mra::serving

// Runs a bundle's model in OpenVINO's own format on the CPU. A library of its own, so that libmra_serving needs no OpenVINO, and
// bound to the release that it was built with, as the bundle's operators are.
//
// OpenVINO compiles anew for each shape that it meets, which takes as long as a run of a short text, and keeps what it compiled. So
// shapes are few (Limits::few_shapes).
#include <openvino/core/version.hpp>
#include <openvino/openvino.hpp>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "failure.h"

namespace mra::serving {
namespace {

// As in "2026.4.1"; the build number goes on with "-".
std::string release() {
  const std::string build = ov::get_openvino_version().buildNumber;
  return build.substr(0, build.find('-'));
}

// OpenVINO's errors on one line, without the places in its sources.
std::string said_by(const std::exception& error) {
  constexpr std::size_t kLongest = 300;
  std::string text, line;
  for (const char* c = error.what();; ++c) {
    if (*c != '\n' && *c != '\0') {
      line += *c;
      continue;
    }
    const std::size_t begin = line.find_first_not_of(" \t"), end = line.find_last_not_of(" \t\r");
    if (begin != std::string::npos && line.compare(begin, 15, "Exception from ") != 0)
      text += (text.empty() ? "" : " ") + line.substr(begin, end + 1 - begin);
    line.clear();
    if (*c == '\0') break;
  }
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + " ...";
}

struct Model {
  Request request;
  ov::CompiledModel compiled;
  std::string version;
  Limits limits;
};

class OpenVinoContext final : public Context {
 public:
  explicit OpenVinoContext(std::shared_ptr<const Model> model) : model_(std::move(model)) {
    const auto tokens = static_cast<std::size_t>(model_->limits.max_tokens);
    ids_.resize(tokens);
    mask_.resize(tokens);
    if (model_->request.has_types) types_.assign(tokens, 0);
    // create_infer_request() is not const, but compiled models are made to be used by several threads.
    request_ = const_cast<ov::CompiledModel&>(model_->compiled).create_infer_request();
  }

  Buffers buffers() noexcept override { return {ids_.data(), mask_.data()}; }

  std::int64_t padded_rows(std::int64_t rows) const noexcept override { return rows; }

  Status run(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) noexcept override {
    return guarded([&] {
      try {
        infer(rows, width, wanted, out);
      } catch (const ov::Exception& error) {
        fail(Code::kInternal, "OpenVINO could not run " + model_->request.file + " on [" + std::to_string(rows) + ", " +
                                  std::to_string(width) + "]: " + said_by(error));
      }
    });
  }

  void infer(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) {
    const Request& request = model_->request;
    const ov::Shape shape{static_cast<std::size_t>(rows), static_cast<std::size_t>(width)};
    request_.set_tensor("input_ids", ov::Tensor(ov::element::i64, shape, ids_.data()));
    request_.set_tensor("attention_mask", ov::Tensor(ov::element::i64, shape, mask_.data()));
    if (request.has_types) request_.set_tensor("token_type_ids", ov::Tensor(ov::element::i64, shape, types_.data()));
    request_.infer();
    const ov::Tensor result = request_.get_tensor(request.output);
    const auto hidden = static_cast<std::size_t>(request.hidden_size);
    const ov::Shape expected = request.mean_of_tokens ? ov::Shape{shape[0], shape[1], hidden} : ov::Shape{shape[0], hidden};
    if (result.get_shape() != expected)
      fail(Code::kInput, request.file + " gives " + request.output +
                             " in another shape than manifest.json's hidden_size=" + std::to_string(request.hidden_size) + " has.");
    if (request.mean_of_tokens)
      mean_over_tokens(result.data<const float>(), mask_.data(), wanted, width, request.hidden_size, out);
    else
      std::memcpy(out, result.data<const float>(), static_cast<std::size_t>(wanted) * hidden * sizeof(float));
  }

 private:
  std::shared_ptr<const Model> model_;
  std::vector<std::int64_t> ids_, mask_, types_;
  ov::InferRequest request_;
};

class OpenVinoBackend final : public Backend {
 public:
  explicit OpenVinoBackend(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const char* version() const noexcept override { return model_->version.c_str(); }
  const char* device() const noexcept override { return "cpu"; }
  Limits limits() const noexcept override { return model_->limits; }
  Status make_context(std::unique_ptr<Context>* context) noexcept override {
    return guarded([&] {
      try {
        *context = std::make_unique<OpenVinoContext>(model_);
      } catch (const ov::Exception& error) {
        fail(Code::kInternal, "OpenVINO cannot make a request for " + model_->request.file + ": " + said_by(error));
      }
    });
  }

 private:
  std::shared_ptr<const Model> model_;
};

// A library may be added once to a core, and a core keeps its plugins' threads: one for each library of operators in the process.
std::shared_ptr<ov::Core> core_with(const std::string& library) {
  auto core = std::make_shared<ov::Core>();
  if (library.empty()) return core;
  try {
    core->add_extension(library);
  } catch (const ov::Exception& error) {
    fail(Code::kEnvironment, library + " cannot be loaded by OpenVINO " + release() + ": " + said_by(error));
  }
  return core;
}

// The file's inputs and outputs are what the manifest says.
void check_signature(const ov::Model& model, const Request& request) {
  std::vector<std::string> wanted = {"input_ids", "attention_mask"};
  if (request.has_types) wanted.emplace_back("token_type_ids");
  for (const auto& input : model.inputs()) {
    const auto found =
        std::find_if(wanted.begin(), wanted.end(), [&](const std::string& name) { return input.get_names().count(name) == 1; });
    if (found == wanted.end())
      fail(Code::kInput, request.file + " has the input " + input.get_any_name() + ", which manifest.json does not.");
    if (input.get_element_type() != ov::element::i64 || input.get_partial_shape().rank() != 2)
      fail(Code::kInput, request.file + ": " + *found + " must have 2 axes and be int64.");
    wanted.erase(found);
  }
  if (!wanted.empty()) fail(Code::kInput, request.file + " lacks the input " + wanted.front() + ", which manifest.json has.");
  for (const auto& output : model.outputs()) {
    if (output.get_names().count(request.output) == 0) continue;
    if (output.get_element_type() != ov::element::f32)
      fail(Code::kInput, request.file + ": " + request.output + " must be float32.");
    return;
  }
  fail(Code::kInput, request.file + " lacks the output " + request.output + ", which manifest.json has.");
}

// What `mra-export openvino` noted in the file; empty where it did not.
std::string note(const ov::Model& model, const std::string& name) {
  return model.has_rt_info("mra_export", name) ? model.get_rt_info<std::string>("mra_export", name) : "";
}

// Whether the processor multiplies bfloat16 faster than float32: AMX does, and AVX512-BF16 of AMD. Intel's AVX512-BF16 is half as
// fast as float32, and where there is neither OpenVINO only emulates it.
bool is_bfloat16_fast() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAmxBf16 = 1u << 22;  // of EDX in leaf 7: older compilers have no name for it
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0) return true;
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// The arithmetic: bfloat16 where the file is meant for no finer one and the processor is faster at it. It is always asked for, since
// OpenVINO's own choice depends on the processor alone.
ov::element::Type arithmetic(const ov::Model& model, const Request& request) {
  if (const std::string precision = note(model, "precision"); precision != request.precision)
    fail(Code::kInput, request.file + " notes precision=" + precision + ", manifest.json says " + request.precision +
                           ". Write the bundle again with `mra-export bundle`.");
  const std::string hint = note(model, "inference_precision_hint");
  if (hint != "f32" && hint != "bf16")
    fail(Code::kInput, request.file + " notes inference_precision_hint=" + hint +
                           ", which must be f32 or bf16. Write it again with `mra-export openvino`.");
  return hint == "bf16" && is_bfloat16_fast() ? ov::element::bf16 : ov::element::f32;
}

// The largest id and that of padding, tried on the model itself.
void try_facts(const std::shared_ptr<const Model>& model) {
  const Request& request = model->request;
  const std::int64_t length =
      std::min(request.is_length_noted ? request.length_step : request.max_batch_tokens, request.max_seq_len);
  OpenVinoContext context(model);
  const Buffers buffers = context.buffers();
  std::fill(buffers.ids, buffers.ids + length, request.pad_token_id);
  std::fill(buffers.mask, buffers.mask + length, 1);
  buffers.ids[0] = request.vocab_size - 1;
  std::vector<float> vector(static_cast<std::size_t>(request.hidden_size));
  try {
    context.infer(1, length, 1, vector.data());
  } catch (const ov::Exception& error) {
    fail(Code::kInput, "OpenVINO cannot run " + request.file + " on what manifest.json allows, " + std::to_string(length) +
                           " tokens with the ids " + std::to_string(request.vocab_size - 1) + " and " +
                           std::to_string(request.pad_token_id) + ": " + said_by(error));
  }
}

std::shared_ptr<const Model> open_model(const Request& request) {
  if (!request.library.empty() && request.backend_version != release())
    fail(Code::kEnvironment, request.library + " is for OpenVINO " + request.backend_version + ", and the OpenVINO here is " +
                                 release() + ": operators run with their own release only. Install OpenVINO " +
                                 request.backend_version + " and build plugins/serving with it, or write the bundle again with " +
                                 release() + ".");
  auto model = std::make_shared<Model>();
  model->request = request;
  model->version = release();
  model->limits = {request.max_batch_tokens, request.max_seq_len, request.max_batch_tokens};
  model->limits.few_shapes = true;
  const std::shared_ptr<ov::Core> core = core_with(request.library);
  std::shared_ptr<ov::Model> read;
  try {
    read = core->read_model(request.file);
  } catch (const ov::Exception& error) {
    fail(Code::kInput, "OpenVINO " + model->version + " cannot read " + request.file + ": " + said_by(error));
  }
  check_signature(*read, request);
  ov::AnyMap settings{ov::hint::inference_precision(arithmetic(*read, request)), ov::num_streams(request.parallel_runs)};
  if (request.threads > 0) settings.insert(ov::inference_num_threads(request.threads * request.parallel_runs));
  try {
    model->compiled = core->compile_model(read, "CPU", settings);
  } catch (const ov::Exception& error) {
    fail(Code::kInput, "OpenVINO " + model->version + " cannot compile " + request.file + ": " + said_by(error));
  }
  try_facts(model);
  return model;
}

Status machine(int, std::string* version, std::string* compute_capability) noexcept {
  return guarded([&] {
    *version = release();
    compute_capability->clear();
  });
}

Status open(const Request& request, std::unique_ptr<Backend>* backend) noexcept {
  return guarded([&] {
    try {
      *backend = std::make_unique<OpenVinoBackend>(open_model(request));
    } catch (const ov::Exception& error) {
      fail(Code::kInternal, "OpenVINO: " + said_by(error));
    }
  });
}

}  // namespace
}  // namespace mra::serving

extern "C" __attribute__((visibility("default"))) const mra::serving::BackendLibrary* mra_serving_backend() {
  static const mra::serving::BackendLibrary library = {mra::serving::kBackendBuild, "openvino", mra::serving::machine,
                                                       mra::serving::open};
  return &library;
}

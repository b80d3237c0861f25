// Runs the ONNX file of a bundle: ONNX Runtime on the CPU, or with its CUDA provider.
#define ORT_API_MANUAL_INIT  // a runtime that is too old is an error to report, not a crash before main()
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "failure.h"
#include "log.h"

namespace mra::serving {
namespace {

void ORT_API_CALL tell(void*, OrtLoggingLevel severity, const char* category, const char*, const char* place, const char* message) {
  if (severity < ORT_LOGGING_LEVEL_WARNING) return;
  const std::string where = place != nullptr && *place != '\0' ? std::string(" (") + place + ")" : "";
  detail::log(severity == ORT_LOGGING_LEVEL_WARNING ? LogLevel::kWarning : LogLevel::kError,
              std::string(category != nullptr ? category : "onnxruntime") + ": " + (message != nullptr ? message : "") + where);
}

// ONNX Runtime's, made once and never freed: sessions may outlive what asked for it.
struct Environment {
  Ort::Env* env = nullptr;
  bool has_threads = false;      // that sessions share
  std::int64_t arena_bytes = 0;  // of the arena that sessions share; 0 where there is none
};

void begin() {
  static const bool has_begun = [] {
    // From 1.29 on ONNX Runtime reports to Microsoft, and only a variable that is there when it begins keeps it from its first
    // report and from a file in the home directory. What the user has set counts.
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    const OrtApiBase* base = OrtGetApiBase();
    const OrtApi* api = base->GetApi(ORT_API_VERSION);
    if (api == nullptr)
      fail(Code::kEnvironment, std::string("ONNX Runtime ") + base->GetVersionString() + " is older than 1." +
                                   std::to_string(ORT_API_VERSION) +
                                   ", whose headers this library was built with. Install a newer one.");
    Ort::InitApi(api);
    return true;
  }();
  static_cast<void>(has_begun);
}

// The environment of a request, with what it asks of one. What goes wrong comes back as an error: a library has no business on
// standard error, and what ONNX Runtime says goes to the program's log or to nobody.
Ort::Env& environment(const Request& request) {
  begin();
  static std::mutex mutex;
  static auto* known = new std::map<void*, Environment>;
  const std::lock_guard<std::mutex> lock(mutex);
  Environment& found = (*known)[request.onnxruntime_env];
  if (found.env == nullptr && request.onnxruntime_env != nullptr) {
    found = {new Ort::Env(static_cast<OrtEnv*>(request.onnxruntime_env)), true, 0};  // whether it has, it says itself
  } else if (found.env == nullptr) {
    Ort::ThreadingOptions threads;
    threads.SetGlobalIntraOpNumThreads(request.threads);
    threads.SetGlobalInterOpNumThreads(1);
    threads.SetGlobalSpinControl(0);
    found.env = request.shared_threads ? new Ort::Env(threads, tell, nullptr, ORT_LOGGING_LEVEL_WARNING, "mra_serving")
                                       : new Ort::Env(ORT_LOGGING_LEVEL_WARNING, "mra_serving", tell, nullptr);
    found.has_threads = request.shared_threads;
    // Where another library of the process began before.
    const char* is_off = std::getenv("ORT_DISABLE_TELEMETRY");
    if (is_off != nullptr && std::string(is_off) == "1") found.env->DisableTelemetryEvents();
  }
  if (request.shared_threads && !found.has_threads)
    fail(Code::kInput,
         "shared_threads: ONNX Runtime's environment was made without threads to share. Ask for them in the first "
         "Embedder of the process, or give an onnxruntime_env that has them.");
  if (request.arena_bytes != 0 && found.arena_bytes == 0) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    // What is asked for, and no more: by default an arena doubles.
    const Ort::ArenaCfg arena(static_cast<std::size_t>(request.arena_bytes), 1, -1, -1);
    found.env->CreateAndRegisterAllocator(memory, arena);
    found.arena_bytes = request.arena_bytes;
  }
  if (request.arena_bytes != 0 && found.arena_bytes != request.arena_bytes)
    fail(Code::kInput, "arena_bytes=" + std::to_string(request.arena_bytes) + ", but the arena that they share has " +
                           std::to_string(found.arena_bytes) + ". State the same, or none.");
  return *found.env;
}

struct Model {
  Ort::Session session{nullptr};
  std::string version;
  std::string device = "cpu";
  Request request;
  Limits limits;
};

class OnnxContext final : public Context {
 public:
  explicit OnnxContext(std::shared_ptr<const Model> model)
      : model_(std::move(model)), memory_(Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault)) {
    const auto tokens = static_cast<std::size_t>(model_->limits.max_tokens);
    ids_.resize(tokens);
    mask_.resize(tokens);
    if (model_->request.has_types) types_.assign(tokens, 0);
  }

  Buffers buffers() noexcept override { return {ids_.data(), mask_.data()}; }
  std::int64_t padded_rows(std::int64_t rows) const noexcept override { return rows; }

  Status run(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) noexcept override {
    return guarded([&] {
      try {
        run_session(rows, width, wanted, out);
      } catch (const Ort::Exception& error) {
        fail(Code::kInternal, "ONNX Runtime could not run " + model_->request.file + " on [" + std::to_string(rows) + ", " +
                                  std::to_string(width) + "]: " + error.what());
      }
    });
  }

 private:
  void run_session(std::int64_t rows, std::int64_t width, std::int64_t wanted, float* out) {
    const Request& request = model_->request;
    const std::int64_t shape[] = {rows, width};
    const auto count = static_cast<std::size_t>(rows * width);
    const auto tensor = [&](std::vector<std::int64_t>& data) {
      return Ort::Value::CreateTensor<std::int64_t>(memory_, data.data(), count, shape, 2);
    };
    const char* names[] = {"input_ids", "attention_mask", "token_type_ids"};
    Ort::Value inputs[] = {tensor(ids_), tensor(mask_), request.has_types ? tensor(types_) : Ort::Value(nullptr)};
    const char* output = request.output.c_str();
    Ort::Value result{nullptr};
    if (!request.mean_of_tokens) {
      const std::int64_t out_shape[] = {rows, request.hidden_size};
      result = Ort::Value::CreateTensor<float>(memory_, out, static_cast<std::size_t>(rows * request.hidden_size), out_shape, 2);
    }
    // Run() is not const in the C++ API, but sessions are made to be run by several threads.
    const_cast<Ort::Session&>(model_->session)
        .Run(Ort::RunOptions{nullptr}, names, inputs, request.has_types ? 3 : 2, &output, &result, 1);
    if (request.mean_of_tokens) {
      if (result.GetTensorTypeAndShapeInfo().GetShape() != std::vector<std::int64_t>{rows, width, request.hidden_size})
        fail(Code::kInput, request.file + " gives " + request.output + " in another shape than [batch, sequence, hidden_size].");
      mean_over_tokens(result.GetTensorData<float>(), mask_.data(), wanted, width, request.hidden_size, out);
    }
  }

  std::shared_ptr<const Model> model_;
  Ort::MemoryInfo memory_;
  std::vector<std::int64_t> ids_, mask_, types_;
};

class OnnxBackend final : public Backend {
 public:
  explicit OnnxBackend(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  const char* version() const noexcept override { return model_->version.c_str(); }
  const char* device() const noexcept override { return model_->device.c_str(); }
  Limits limits() const noexcept override { return model_->limits; }
  Status make_context(std::unique_ptr<Context>* context) noexcept override {
    return guarded([&] { *context = std::make_unique<OnnxContext>(model_); });
  }

 private:
  std::shared_ptr<const Model> model_;
};

// The file's inputs and outputs are what the manifest says.
void check_signature(const Model& model) {
  const Request& request = model.request;
  Ort::AllocatorWithDefaultOptions allocator;
  const auto check = [&](const std::string& name, const Ort::TypeInfo& type, ONNXTensorElementDataType element, std::size_t rank) {
    if (type.GetONNXType() != ONNX_TYPE_TENSOR) fail(Code::kInput, request.file + ": " + name + " is no tensor.");
    const auto info = type.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() != element || info.GetShape().size() != rank)
      fail(Code::kInput, request.file + ": " + name + " must have " + std::to_string(rank) + " axes and be " +
                             (element == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? "int64" : "float32") + ".");
    if (element == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && info.GetShape().back() > 0 &&
        info.GetShape().back() != request.hidden_size)
      fail(Code::kInput, request.file + ": " + name + " has " + std::to_string(info.GetShape().back()) +
                             " numbers a vector, manifest.json says " + std::to_string(request.hidden_size) + ".");
  };
  std::vector<std::string> wanted = {"input_ids", "attention_mask"};
  if (request.has_types) wanted.emplace_back("token_type_ids");
  for (std::size_t i = 0; i < model.session.GetInputCount(); ++i) {
    const std::string name = model.session.GetInputNameAllocated(i, allocator).get();
    const auto found = std::find(wanted.begin(), wanted.end(), name);
    if (found == wanted.end()) fail(Code::kInput, request.file + " has the input " + name + ", which manifest.json does not.");
    check(name, model.session.GetInputTypeInfo(i), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 2);
    wanted.erase(found);
  }
  if (!wanted.empty()) fail(Code::kInput, request.file + " lacks the input " + wanted.front() + ", which manifest.json has.");
  for (std::size_t i = 0; i < model.session.GetOutputCount(); ++i) {
    const std::string name = model.session.GetOutputNameAllocated(i, allocator).get();
    if (name != request.output) continue;
    check(name, model.session.GetOutputTypeInfo(i), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, request.mean_of_tokens ? 3 : 2);
    return;
  }
  fail(Code::kInput, request.file + " lacks the output " + request.output + ", which manifest.json has.");
}

// One run of a row of these ids, and the output's shape.
std::vector<std::int64_t> shape_of_run(Model& model, std::vector<std::int64_t> ids) {
  const Request& request = model.request;
  std::vector<std::int64_t> mask(ids.size(), 1), types(ids.size(), 0);
  const std::int64_t shape[] = {1, static_cast<std::int64_t>(ids.size())};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  const auto tensor = [&](std::vector<std::int64_t>& data) {
    return Ort::Value::CreateTensor<std::int64_t>(memory, data.data(), data.size(), shape, 2);
  };
  const char* names[] = {"input_ids", "attention_mask", "token_type_ids"};
  Ort::Value inputs[] = {tensor(ids), tensor(mask), request.has_types ? tensor(types) : Ort::Value(nullptr)};
  const char* output = request.output.c_str();
  Ort::Value result{nullptr};
  model.session.Run(Ort::RunOptions{nullptr}, names, inputs, request.has_types ? 3 : 2, &output, &result, 1);
  return result.GetTensorTypeAndShapeInfo().GetShape();
}

// What manifest.json says of ids and lengths, tried on the model itself: it is run on the largest id and on that of padding, and
// on the longest text where its file does not say how long that is.
void try_facts(Model& model) {
  const Request& request = model.request;
  const std::int64_t length = std::min(request.is_length_noted ? 2 : request.max_batch_tokens, request.max_seq_len);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(length), request.pad_token_id);
  ids.front() = request.vocab_size - 1;
  const auto width = static_cast<std::int64_t>(ids.size());
  std::vector<std::int64_t> shape;
  try {
    shape = shape_of_run(model, std::move(ids));
  } catch (const Ort::Exception& error) {
    fail(Code::kInput, "ONNX Runtime cannot run " + request.file + " on what manifest.json allows, " + std::to_string(width) +
                           " tokens with the ids " + std::to_string(request.vocab_size - 1) + " and " +
                           std::to_string(request.pad_token_id) + ": " + error.what());
  }
  const std::vector<std::int64_t> expected = request.mean_of_tokens ? std::vector<std::int64_t>{1, width, request.hidden_size}
                                                                    : std::vector<std::int64_t>{1, request.hidden_size};
  if (shape != expected)
    fail(Code::kInput, request.file + " gives " + request.output +
                           " in another shape than manifest.json's hidden_size=" + std::to_string(request.hidden_size) + " has.");
}

std::shared_ptr<const Model> open_model(const Request& request) {
  Ort::Env& env = environment(request);
  auto model = std::make_shared<Model>();
  model->request = request;
  model->version = OrtGetApiBase()->GetVersionString();
  model->limits = {request.max_batch_tokens, request.max_seq_len, request.max_batch_tokens};
  Ort::SessionOptions options;
  if (request.shared_threads)
    options.DisablePerSessionThreads();
  else
    options.SetIntraOpNumThreads(request.threads);
  if (request.arena_bytes != 0) options.AddConfigEntry("session.use_env_allocators", "1");
  options.SetLogSeverityLevel(detail::is_logged() ? ORT_LOGGING_LEVEL_WARNING : ORT_LOGGING_LEVEL_FATAL);
  // A pattern would be kept for each shape that ever came: memory that grows for as long as shapes differ.
  options.DisableMemPattern();
  // Threads that spin between runs take the cores from the other callers.
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  if (request.use_gpu) {
    const auto providers = Ort::GetAvailableProviders();
    if (std::find(providers.begin(), providers.end(), "CUDAExecutionProvider") == providers.end())
      fail(Code::kEnvironment, "This ONNX Runtime " + model->version +
                                   " has no CUDA provider. Take the one of the package onnxruntime-gpu, or the device cpu.");
    OrtCUDAProviderOptions cuda{};
    cuda.device_id = request.gpu;
    try {
      options.AppendExecutionProvider_CUDA(cuda);
    } catch (const Ort::Exception& error) {
      fail(Code::kEnvironment, std::string("ONNX Runtime's CUDA provider cannot be used: ") + error.what());
    }
    model->device = "cuda:" + std::to_string(request.gpu);
  }
  if (!request.library.empty()) {
    try {
      options.RegisterCustomOpsLibrary(request.library.c_str());
    } catch (const Ort::Exception& error) {
      fail(Code::kEnvironment, request.library + " cannot be loaded: " + error.what());
    }
  }
  try {
    model->session = Ort::Session(env, request.file.c_str(), options);
  } catch (const Ort::Exception& error) {
    fail(Code::kInput, "ONNX Runtime " + model->version + " cannot load " + request.file + ": " + error.what());
  }
  check_signature(*model);
  try_facts(*model);
  return model;
}

}  // namespace

Status open_onnxruntime(const Request& request, std::unique_ptr<Backend>* backend) noexcept {
  return guarded([&] {
    try {
      *backend = std::make_unique<OnnxBackend>(open_model(request));
    } catch (const Ort::Exception& error) {
      fail(Code::kInternal, std::string("ONNX Runtime: ") + error.what());
    }
  });
}

}  // namespace mra::serving

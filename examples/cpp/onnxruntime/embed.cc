// Embeds token ids with an exported model and the native operator: the smallest C++ server.
//
//   mra_embed MODEL_DIR LIBRARY IDS_FILE [THREADS]
//
// MODEL_DIR is what `mra-export onnx` wrote, LIBRARY libmra_onnxruntime.so. IDS_FILE holds one text a line, as token ids with
// spaces between. All texts are one batch, padded on the right. Prints one vector a line: `sentence_embedding` of a model
// exported with pooling, otherwise the mean of `last_hidden_state` over the text's tokens.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<std::vector<std::int64_t>> read_ids(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read.");
  std::vector<std::vector<std::int64_t>> texts;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::vector<std::int64_t> ids;
    for (std::int64_t id; words >> id;) ids.push_back(id);
    if (!words.eof()) throw std::runtime_error(path + ": '" + line + "' is not a line of token ids.");
    if (!ids.empty()) texts.push_back(ids);
  }
  if (texts.empty()) throw std::runtime_error(path + " holds no token ids.");
  return texts;
}

void embed(const std::string& model_dir, const std::string& library, const std::string& ids_file, int threads) {
  const auto texts = read_ids(ids_file);
  const auto batch = static_cast<std::int64_t>(texts.size());
  std::int64_t seq_len = 0;
  for (const auto& ids : texts) seq_len = std::max(seq_len, static_cast<std::int64_t>(ids.size()));

  // Token ids, mask and types: [batch, seq_len].
  std::vector<std::int64_t> input_ids(static_cast<std::size_t>(batch * seq_len), 0);
  std::vector<std::int64_t> attention_mask = input_ids, token_type_ids = input_ids;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::size_t row = i * static_cast<std::size_t>(seq_len);
    std::copy(texts[i].begin(), texts[i].end(), input_ids.begin() + static_cast<std::ptrdiff_t>(row));
    std::fill_n(attention_mask.begin() + static_cast<std::ptrdiff_t>(row), texts[i].size(), 1);
  }

  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // before ONNX Runtime begins: from 1.29 on it reports to Microsoft otherwise
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "mra_embed");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.RegisterCustomOpsLibrary(library.c_str());  // the operator: everything else is as for any model
  Ort::Session session(environment, (model_dir + "/onnx/model.onnx").c_str(), options);

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const std::int64_t shape[] = {batch, seq_len};
  std::vector<std::string> input_names;
  std::vector<Ort::Value> inputs;
  Ort::AllocatorWithDefaultOptions allocator;
  for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
    input_names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
    auto& data = input_names.back() == "input_ids"        ? input_ids
                 : input_names.back() == "attention_mask" ? attention_mask
                                                          : token_type_ids;
    inputs.push_back(Ort::Value::CreateTensor<std::int64_t>(memory, data.data(), data.size(), shape, 2));
  }
  std::string output_name = "last_hidden_state";
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i)
    if (std::string(session.GetOutputNameAllocated(i, allocator).get()) == "sentence_embedding") output_name = "sentence_embedding";

  std::vector<const char*> input_pointers;
  for (const auto& name : input_names) input_pointers.push_back(name.c_str());
  const char* output_pointer = output_name.c_str();
  const auto outputs = session.Run(Ort::RunOptions(), input_pointers.data(), inputs.data(), inputs.size(), &output_pointer, 1);
  const auto dims = outputs[0].GetTensorTypeAndShapeInfo().GetShape();
  const float* values = outputs[0].GetTensorData<float>();

  const std::int64_t width = dims.back();
  const bool pooled = dims.size() == 2;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::size_t tokens = pooled ? 1 : texts[i].size();
    const float* first = values + static_cast<std::int64_t>(i) * (pooled ? 1 : seq_len) * width;
    for (std::int64_t d = 0; d < width; ++d) {
      double sum = 0;
      for (std::size_t t = 0; t < tokens; ++t) sum += first[static_cast<std::int64_t>(t) * width + d];
      std::printf(d == 0 ? "%.9g" : " %.9g", sum / static_cast<double>(tokens));
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: mra_embed MODEL_DIR LIBRARY IDS_FILE [THREADS]\n");
    return 2;
  }
  try {
    embed(argv[1], argv[2], argv[3], argc == 5 ? std::atoi(argv[4]) : 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

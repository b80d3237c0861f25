// Embeds token ids with a bundle, through the library mra_serving, and says how alike each text is to the first.
//
//   embed BUNDLE < IDS
//
// IDS holds one text a line, as `python -m mra_export.embedding.token_ids BUNDLE` writes them: token ids with spaces between.
#include <mra/serving.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

namespace {

int fail(const mra::serving::Status& status) {
  std::fprintf(stderr, "%s\n", status.message.c_str());
  return static_cast<int>(status.code);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: embed BUNDLE < IDS\n");
    return 2;
  }
  std::vector<std::vector<std::int64_t>> texts;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    texts.emplace_back();
    for (std::int64_t id; words >> id;) texts.back().push_back(id);
  }

  mra::serving::Options options;
  options.device = mra::serving::Device::kAuto;  // an engine that this machine can run, else ONNX Runtime on the CPU
  const auto embedder = mra::serving::Embedder::open(argv[1], options);
  if (!embedder) return fail(embedder.status());
  std::fprintf(stderr, "%s on %s\n", embedder->info().file.c_str(), embedder->info().device.c_str());

  // Lengths may be mixed; any number of threads may do this at once.
  const auto vectors = embedder->embed(texts);
  if (!vectors) return fail(vectors.status());
  for (std::size_t i = 0; i < vectors->rows; ++i) {
    const float* row = vectors->row(i);
    // The cosine, where the bundle scales vectors to length 1.
    std::printf("%zu %.6f\n", i, std::inner_product(row, row + vectors->columns, vectors->row(0), 0.0));
  }
}

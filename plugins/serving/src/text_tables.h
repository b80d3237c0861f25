// Tokenizes with the tables of a bundle, WordPiece and byte-level BPE; mra_export/checkpoint/text_tables.py makes and proves them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mra/serving.h"

namespace mra::serving {

// What an encoder needs to know of the bundle.
struct TextRequest {
  std::string file;             // tokenizer.json
  std::string tables;           // of it; empty where the bundle has none
  std::int64_t max_length = 0;  // ids to which a text is cut, special tokens included
  bool cuts_left = false;       // whether a text that is too long loses its beginning
  std::int64_t vocab_size = 0;  // ids are below it
  std::string python_site;      // of the backend for Python: the folder with the package tokenizers; empty: its own choice
};

// Reads the tables and lets them tokenize the texts in the file, whose ids the model's own tokenizer gave. Throws Failure.
std::shared_ptr<const TextEncoder> open_tables(const TextRequest& request);

}  // namespace mra::serving

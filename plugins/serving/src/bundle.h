// The bundle: its manifest, read and checked field by field, and its files, held against it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mra/serving.h"

namespace mra::serving {

// One way of running the model. Paths are absolute or relative as the bundle's directory is.
struct Variant {
  std::string backend;
  std::string name;  // of `file` inside the bundle
  std::string file;
  std::string precision;
  std::string library;          // empty where it runs without one
  std::string backend_version;  // of engines and of OpenVINO's file; else empty
};

// What the library needs of manifest.json; mra_export/bundle/manifest.py describes its fields.
struct Bundle {
  std::string directory;
  std::string architecture;
  std::string task;
  std::int64_t hidden_size = 0;
  std::int64_t max_seq_len = 0;
  std::int64_t vocab_size = 0;
  std::int64_t pad_token_id = 0;
  std::int64_t length_step = 1;  // tokens of a block: how many blocks there are is part of what the model computes
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  // Of the output sentence_embedding; without one, `pooling` is empty and `dimension` 0.
  std::string pooling;  // "mean", "cls+max" ...
  bool include_prompt = true;
  bool normalize = false;  // whether the last of the modules does
  std::int64_t dimension = 0;
  std::string similarity;  // empty where it is not said
  std::map<std::string, std::string> prompts;
  std::optional<std::string> default_prompt;
  std::int64_t max_length = 0;  // of the tokenizer, max_seq_len without one
  std::string truncation_side;  // empty without a tokenizer
  std::string tokenizer_file;
  std::string tables_file;  // of the tokenizer; empty where the bundle has none
  std::vector<Variant> variants;
};

// Reads the manifest, and with `verify_files` every file. Throws Failure, whose message names the file or the field.
Bundle read_bundle(const std::string& directory, bool verify_files);

}  // namespace mra::serving

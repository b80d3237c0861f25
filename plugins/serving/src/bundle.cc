// Reads manifest.json as mra_export/bundle/manifest.py does, and holds the bundle's files against it.
#include "bundle.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "failure.h"
#include "json.h"
#include "sha256.h"

namespace mra::serving {
namespace {

namespace fs = std::filesystem;
using detail::Json;
using Kind = Json::Kind;

constexpr std::int64_t kFormat = 3;
constexpr const char* kTablesFile = "tokenizer.tables";
constexpr std::int64_t kMaxManifestBytes = 1 << 20;
// What storage and transport put beside a bundle's files; mra_export/bundle/verify.py says of each where it comes from. A path
// from the bundle's root where it begins with a slash, a file of that name anywhere else.
constexpr const char* kTolerated[] = {
    "/.git", ".gitattributes",      ".gitignore",    ".gitkeep",   ".gitmodules", ".lfsconfig", "/.dvc",     ".dvcignore", "/.hg",
    "/.svn", "/.cache/huggingface", "/.huggingface", "/README.md", "/lost+found", "/.snapshot", "/.Trash-*", ".DS_Store",  "._*",
    ".nfs*", "Thumbs.db",           "desktop.ini",
};
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 62;  // beyond it no product is taken
constexpr const char* kMend = "Copy the bundle again, or write it again with `mra-export bundle`.";

// The fields of the manifest. A leading '?' allows null, {"*": kind} is an object of any names, "a|b" a choice.
constexpr const char* kSchema = R"({
  "format": "integer", "mra_export": "word", "manifest_sha256": "sha256",
  "model": {
    "family": "word", "architecture": "?word", "task": "word", "dtype": "fp32|fp16|bf16",
    "hidden_size": "size", "max_seq_len": "size", "vocab_size": "size", "pad_token_id": "count",
    "length_step": "size",
    "inputs": ["word"], "outputs": ["word"],
    "operator": {"domain": "word", "type": "word", "version": "size", "nodes": "count", "attributes": [{"*": "number"}]}
  },
  "embedding": ["?", {"dimension": "size", "similarity": "?cosine|dot|euclidean|manhattan", "modules": ["object"]}],
  "text": {"prompts": {"*": "text"}, "default_prompt": "?text"},
  "tokenizer": ["?", {"file": "word", "max_length": "size", "truncation_side": "left|right"}],
  "variants": "list",
  "files": {"*": {"bytes": "count", "sha256": "sha256"}},
  "parity": ["?", [{"reference": "word", "candidate": "word", "metrics": {"*": "?number"}, "tolerance": {"*": "number"},
                    "ok": "?boolean", "notes": ["text"], "layers": ["object"], "cases": ["object"]}]],
  "versions": {"*": "word"},
  "license": ["?", {"id": "?word", "name": "?word", "link": "?word", "source": "?word", "file": "?word"}],
  "provenance": {"source": "?word", "base_model": ["word"], "random_init": "?count"}
})";
constexpr const char* kOnnxSchema =
    R"({"backend": "onnxruntime", "file": "word", "precision": "fp32|fp16|bf16|int8", "library": "?word"})";
constexpr const char* kEngineSchema =
    R"({"backend": "tensorrt|rtx", "file": "word", "precision": "fp32|fp16|bf16", "library": "?word",
  "backend_version": "word", "version_compatible": "boolean", "compute_capability": "capability", "hardware_compatible": "boolean",
  "gpu": "text", "manifest": "word", "profiles": {"*": {"min": ["size"], "opt": ["size"], "max": ["size"]}}})";

constexpr const char* kOpenVinoSchema =
    R"({"backend": "openvino", "file": "word", "precision": "fp32|bf16|int8|int8-weights", "library": "?word",
  "backend_version": "word"})";

// The fields of an entry of embedding.modules, by its kind.
constexpr const char* kModuleSchemas = R"({
  "Pooling": {"kind": "text", "modes": ["cls|max|mean|mean_sqrt_len_tokens|weightedmean|lasttoken"], "include_prompt": "boolean"},
  "Dense": {"kind": "text", "folder": "word", "in_features": "size", "out_features": "size", "bias": "boolean",
            "activation": "Identity|Tanh|ReLU|GELU|Sigmoid|SiLU", "residual": "boolean"},
  "LayerNorm": {"kind": "text", "folder": "word", "dimension": "size"},
  "Normalize": {"kind": "text"},
  "Truncate": {"kind": "text", "dimension": "size"}
})";

std::string shown(const Json& value) {
  std::string text;
  switch (value.kind) {
    case Kind::kNull:
      return "null";
    case Kind::kBoolean:
      return value.integer != 0 ? "true" : "false";
    case Kind::kInteger:
    case Kind::kNumber:
      text = value.text;
      break;
    case Kind::kString:
      text = '"' + value.text + '"';
      break;
    case Kind::kArray:
      return "a list of " + std::to_string(value.items.size());
    case Kind::kObject:
      return "an object of " + std::to_string(value.items.size());
  }
  return text.size() <= 80 ? text : text.substr(0, 80) + " ...";
}

bool is_utf8(const std::string& text) {
  std::uint32_t code = 0;
  for (std::size_t at = 0, size = 0; at < text.size(); at += size)
    if ((size = detail::read_utf8(text, at, &code)) == 0) return false;
  return true;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// What is wrong with a value of this kind, as "must be ..."; nullptr where it is right.
const char* misfit(const Json& value, const std::string& kind) {
  const std::string& text = value.text;
  const bool is_string = value.kind == Kind::kString, is_integer = value.kind == Kind::kInteger;
  if (kind == "text") return is_string ? nullptr : "text";
  if (kind == "word") {
    const bool is_word =
        is_string && !text.empty() && !is_space(text.front()) && !is_space(text.back()) && text.find('\n') == std::string::npos;
    return is_word ? nullptr : "text on one line, without space around it";
  }
  if (kind == "sha256") {
    const bool is_hash = is_string && text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    return is_hash ? nullptr : "64 hexadecimal digits, in lower case";
  }
  if (kind == "capability") {
    const std::size_t dot = text.find('.');
    const bool is_one = is_string && dot != std::string::npos && dot > 0 && dot + 1 < text.size() &&
                        text.find_first_not_of("0123456789") == dot &&
                        text.find_first_not_of("0123456789", dot + 1) == std::string::npos;
    return is_one ? nullptr : "a compute capability, as in 9.0";
  }
  if (kind == "boolean") return value.kind == Kind::kBoolean ? nullptr : "true or false";
  if (kind == "integer") return is_integer ? nullptr : "an integer";
  if (kind == "size") return is_integer && value.integer >= 1 ? nullptr : "an integer of at least 1";
  if (kind == "count") return is_integer && value.integer >= 0 ? nullptr : "an integer of at least 0";
  if (kind == "number") {
    const bool is_number = is_integer || (value.kind == Kind::kNumber && std::isfinite(std::strtod(text.c_str(), nullptr)));
    return is_number ? nullptr : "a number, not beyond a double's";
  }
  if (kind == "object") return value.kind == Kind::kObject ? nullptr : "an object";
  if (kind == "list") return value.kind == Kind::kArray ? nullptr : "a list";
  const std::string choices = "|" + kind + "|";
  const bool is_choice = is_string && text.find('|') == std::string::npos && choices.find("|" + text + "|") != std::string::npos;
  return is_choice ? nullptr : "one of";
}

class ManifestReader {
 public:
  explicit ManifestReader(const std::string& directory) : directory_(directory), path_(directory + "/manifest.json") {}

  Bundle read() {
    std::error_code error;
    if (!fs::is_directory(directory_, error))
      fail(Code::kInput, directory_ + " is not a directory. Give a bundle that `mra-export bundle` wrote.");
    if (!fs::is_regular_file(path_, error))
      fail(Code::kInput, path_ + " does not exist, so " + directory_ + " is no bundle. " + kMend);
    load();
    check(root_, schema(kSchema), "");
    check_seal();
    check_names();
    check_variants();
    check_texts(root_, "");
    check_modules();
    check_fit();
    Bundle read = bundle();
    // Without the hashes too: a pipe in the place of a file would be waited on for ever.
    for (const Variant& variant : read.variants)
      for (const std::string& file : {variant.file, variant.library})
        if (!file.empty() && fs::exists(file, error) && !fs::is_regular_file(file, error))
          fail(Code::kInput, file + " is no file: manifest.json lists it. " + kMend);
    return read;
  }

  // Every file is there and unchanged, and there is none that the manifest does not list.
  void verify_files() const {
    const Json& files = at(root_, "files");
    for (std::size_t i = 0; i < files.names.size(); ++i) {
      const std::string file = directory_ + "/" + files.names[i];
      std::error_code error;
      if (!fs::is_regular_file(file, error)) fail(Code::kInput, file + " is missing or no file: manifest.json lists it. " + kMend);
      std::int64_t size = 0;
      std::string sha256;
      const std::int64_t stated = at(files.items[i], "bytes").integer;
      const auto found = static_cast<std::int64_t>(fs::file_size(file, error));
      if (!error && found != stated)
        fail(Code::kInput, file + " has " + std::to_string(found) + " bytes, manifest.json says " + std::to_string(stated) +
                               ": it was cut off or replaced. " + kMend);
      if (!detail::digest_file(file, &size, &sha256)) fail(Code::kInput, file + " cannot be read. " + kMend);
      if (sha256 != at(files.items[i], "sha256").text)
        fail(Code::kInput, file + " was changed: its SHA-256 is not that of manifest.json. " + kMend);
    }
    std::set<std::string> listed(files.names.begin(), files.names.end()), folders;
    std::vector<std::string> names = files.names;
    for (const std::string pattern : kTolerated)
      if (pattern[0] == '/') names.push_back(pattern.substr(1));
    for (const std::string& name : names)
      for (std::size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
        folders.insert(name.substr(0, slash));
    listed.insert("manifest.json");
    const fs::path root(directory_);
    for (fs::recursive_directory_iterator entry(root), end; entry != end; ++entry) {
      const std::string name = entry->path().lexically_relative(root).generic_string();
      const bool is_folder = entry->is_directory() && !entry->is_symlink();
      if (listed.count(name) == 0 && is_tolerated(name, entry->is_directory())) {
        if (is_folder) entry.disable_recursion_pending();  // not looked into: lost+found cannot be
        continue;
      }
      if ((is_folder ? folders : listed).count(name) == 0)
        fail(Code::kInput, entry->path().string() + " is not listed in manifest.json. Remove it. " + kMend);
    }
  }

 private:
  static bool is_tolerated(const std::string& name, bool is_folder) {
    const std::string last = is_folder ? "" : name.substr(name.rfind('/') + 1);  // npos + 1 is 0
    for (const std::string pattern : kTolerated) {
      const std::string subject = pattern[0] == '/' ? "/" + name : last;
      const bool begins = pattern.back() == '*' && subject.rfind(pattern.substr(0, pattern.size() - 1), 0) == 0;
      if (subject == pattern || (begins && subject.find('/', 1) == std::string::npos)) return true;
    }
    return false;
  }

  static Json schema(const char* text) {
    Json parsed;
    const std::string source(text);
    if (!detail::JsonReader(source).read(&parsed)) fail(Code::kInternal, "the schema of manifest.json cannot be read");
    return parsed;
  }

  static const Json& at(const Json& object, const char* name) { return *object.find(name); }  // after check()

  // Whatever stands in the file, the message stays readable.
  [[noreturn]] void refuse(const std::string& what) const {
    const std::string shortened = what.size() <= 400 ? what : what.substr(0, 200) + " ... " + what.substr(what.size() - 200);
    fail(Code::kInput, path_ + ": " + shortened + ". " + kMend);
  }

  void load() {
    std::ifstream file(path_, std::ios::binary | std::ios::ate);
    const std::int64_t size = file ? static_cast<std::int64_t>(file.tellg()) : -1;
    if (size < 0) fail(Code::kInput, path_ + " cannot be read. " + kMend);
    if (size > kMaxManifestBytes)
      fail(Code::kInput, path_ + " has " + std::to_string(size) + " bytes, more than a manifest can have. " + kMend);
    text_.resize(static_cast<std::size_t>(size));
    file.seekg(0);
    file.read(text_.data(), size);
    if (!file) fail(Code::kInput, path_ + " cannot be read. " + kMend);
    if (!is_utf8(text_) || !detail::JsonReader(text_).read(&root_))
      fail(Code::kInput, path_ + " is not a readable manifest. " + kMend);
    const Json* format = root_.find("format");
    if (format == nullptr || format->kind != Kind::kInteger)
      refuse("format=" + (format == nullptr ? "null" : shown(*format)) + " must be an integer: this is no manifest of a bundle");
    if (format->integer != kFormat)
      fail(Code::kInput, path_ + " has format=" + format->text + ", this program reads " + std::to_string(kFormat) +
                             ". Take the mra_serving that goes with it, or write the bundle again.");
  }

  void check(const Json& value, const Json& kind, const std::string& where) const {
    const std::string name = where.empty() ? "the manifest" : where;
    if (kind.kind == Kind::kString) {
      if (kind.text[0] == '?' && value.kind == Kind::kNull) return;
      const std::string plain = kind.text.substr(kind.text[0] == '?' ? 1 : 0);
      if (const char* wrong = misfit(value, plain)) {
        std::string choices = plain;
        std::replace(choices.begin(), choices.end(), '|', ' ');
        refuse(name + "=" + shown(value) + " must be " + wrong + (std::string(wrong) == "one of" ? " " + choices : ""));
      }
    } else if (kind.kind == Kind::kArray && kind.items.size() == 2) {  // ["?", kind]
      if (value.kind != Kind::kNull) check(value, kind.items[1], where);
    } else if (kind.kind == Kind::kArray) {
      if (value.kind != Kind::kArray) refuse(name + "=" + shown(value) + " must be a list");
      for (std::size_t i = 0; i < value.items.size(); ++i)
        check(value.items[i], kind.items[0], where + "[" + std::to_string(i) + "]");
    } else {
      if (value.kind != Kind::kObject) refuse(name + "=" + shown(value) + " must be an object");
      std::set<std::string> seen;
      for (const std::string& member : value.names)
        if (!seen.insert(member).second) refuse(name + " has '" + member + "' twice");
      const std::string dot = where.empty() ? "" : where + ".";
      if (const Json* any = kind.find("*")) {
        for (std::size_t i = 0; i < value.items.size(); ++i) check(value.items[i], *any, where + "['" + value.names[i] + "']");
        return;
      }
      for (const std::string& member : kind.names)
        if (value.find(member) == nullptr) fail(Code::kInput, path_ + " lacks " + dot + member + ". " + kMend);
      for (const std::string& member : value.names)
        if (kind.find(member) == nullptr) refuse(dot + member + " is not a field of format " + std::to_string(kFormat));
      for (std::size_t i = 0; i < kind.names.size(); ++i) check(*value.find(kind.names[i]), kind.items[i], dot + kind.names[i]);
    }
  }

  // The manifest protects itself: its SHA-256, taken with zeros in place of the digits that state it.
  void check_seal() const {
    const std::string stated = at(root_, "manifest_sha256").text;
    const auto line = [](const std::string& digits) { return "\"manifest_sha256\": \"" + digits + "\""; };
    const std::size_t found = text_.find(line(stated));
    std::string zeroed = text_;
    if (found != std::string::npos) zeroed.replace(found, line(stated).size(), line(std::string(64, '0')));
    detail::Sha256 digest;
    digest.update(zeroed.data(), zeroed.size());
    if (found == std::string::npos || text_.find(line(stated), found + 1) != std::string::npos || digest.hex() != stated)
      refuse("manifest_sha256=" + stated.substr(0, 12) + "... is not that of this manifest: it was changed after it was written");
  }

  void check_names() const {
    for (const std::string& name : at(root_, "files").names) {
      bool is_inside = !name.empty() && name != "manifest.json" && name.find('\\') == std::string::npos;
      is_inside = is_inside && detail::printable(name) == name;
      for (std::size_t start = 0; start <= name.size();) {
        const std::size_t end = std::min(name.find('/', start), name.size());
        const std::string part = name.substr(start, end - start);
        is_inside = is_inside && !part.empty() && part != "." && part != "..";
        start = end + 1;
      }
      if (!is_inside) refuse("files['" + name + "'] is not the name of a file inside the bundle");
    }
  }

  void check_listed(const Json* name, const std::string& where) const {
    if (name != nullptr && name->kind == Kind::kString && at(root_, "files").find(name->text) == nullptr)
      refuse(where + "='" + name->text + "' is not in files");
  }

  void check_variants() const {
    const Json& variants = at(root_, "variants");
    if (variants.items.empty()) refuse("variants is empty, but names at least the ONNX file");
    const Json onnx = schema(kOnnxSchema), engine = schema(kEngineSchema), openvino = schema(kOpenVinoSchema);
    for (std::size_t i = 0, openvinos = 0; i < variants.items.size(); ++i) {
      const std::string where = "variants[" + std::to_string(i) + "]";
      const Json* backend = variants.items[i].find("backend");
      const bool is_openvino = i > 0 && backend != nullptr && backend->kind == Kind::kString && backend->text == "openvino";
      if (i > 0 && !is_openvino && backend != nullptr && misfit(*backend, "tensorrt|rtx") != nullptr)
        refuse(where + ".backend=" + shown(*backend) + " must be one of tensorrt rtx openvino");
      check(variants.items[i], i == 0 ? onnx : is_openvino ? openvino : engine, where);
      openvinos += is_openvino ? 1 : 0;
      if (openvinos > 1) refuse("variants has openvino twice");
      for (const char* member : {"file", "library", "manifest"}) check_listed(variants.items[i].find(member), where + "." + member);
    }
  }

  // What stands in a manifest is shown to people: nothing in it may steer their terminal.
  void check_texts(const Json& value, const std::string& where) const {
    if (value.kind == Kind::kString && detail::has_control(value.text))
      refuse(where + "=" + shown(value) + " holds a control character");
    for (std::size_t i = 0; i < value.items.size(); ++i) {
      if (value.kind != Kind::kObject) {
        check_texts(value.items[i], where + "[" + std::to_string(i) + "]");
        continue;
      }
      const std::string& name = value.names[i];
      if (where.empty() && name == "text") continue;  // prompts are put before texts as they are, whatever characters they hold
      if (detail::has_control(name))
        refuse((where.empty() ? "the manifest" : where) + " has the name '" + name + "', which holds a control character");
      check_texts(value.items[i], where.empty() ? name : where + "." + name);
    }
  }

  // The modules after the encoder: each takes what the one before it gives.
  void check_modules() const {
    const Json& embedding = at(root_, "embedding");
    if (embedding.kind == Kind::kNull) return;
    const Json& modules = at(embedding, "modules");
    if (modules.items.empty()) refuse("embedding.modules is empty, but begins with a Pooling");
    const Json schemas = schema(kModuleSchemas);
    std::int64_t width = at(at(root_, "model"), "hidden_size").integer;
    for (std::size_t i = 0; i < modules.items.size(); ++i) {
      const std::string where = "embedding.modules[" + std::to_string(i) + "]";
      const Json &module = modules.items[i], *kind = module.find("kind");
      if (kind == nullptr) fail(Code::kInput, path_ + " lacks " + where + ".kind. " + kMend);
      const Json* fields = kind->kind == Kind::kString ? schemas.find(kind->text) : nullptr;
      if (fields == nullptr) refuse(where + ".kind=" + shown(*kind) + " must be one of Pooling Dense LayerNorm Normalize Truncate");
      if ((kind->text == "Pooling") != (i == 0))
        refuse(where + ".kind=" + kind->text + " must be " + (i == 0 ? "Pooling" : "another") + " at this place");
      check(module, *fields, where);
      if (const Json* folder = module.find("folder"))
        if (at(root_, "files").find(folder->text + "/model.safetensors") == nullptr)
          refuse(where + ".folder='" + folder->text + "/model.safetensors' is not in files");
      const char* takes = kind->text == "Dense" ? "in_features" : kind->text == "LayerNorm" ? "dimension" : nullptr;
      if (takes != nullptr && at(module, takes).integer != width)
        refuse(where + "." + takes + "=" + at(module, takes).text + ", but vectors of " + std::to_string(width) +
               " numbers come in");
      if (kind->text == "Pooling") {
        const auto modes = static_cast<std::int64_t>(at(module, "modes").items.size());
        if (modes == 0) refuse(where + ".modes is empty");
        if (width > kMaxWidth / modes) refuse(where + ".modes gives vectors of more numbers than can be");
        width *= modes;
      } else if (kind->text == "Dense") {
        width = at(module, "out_features").integer;
      } else if (kind->text == "Truncate") {
        width = std::min(width, at(module, "dimension").integer);
      }
    }
    if (at(embedding, "dimension").integer != width)
      refuse("embedding.dimension=" + at(embedding, "dimension").text + ", but the modules give " + std::to_string(width));
  }

  // Fields that contradict each other.
  void check_fit() const {
    const Json &model = at(root_, "model"), &tokenizer = at(root_, "tokenizer"), &license = at(root_, "license");
    const std::string &precision = at(at(root_, "variants").items[0], "precision").text, &dtype = at(model, "dtype").text;
    if (precision != dtype && !(precision == "int8" && dtype == "fp32"))
      refuse("variants[0].precision=" + at(at(root_, "variants").items[0], "precision").text +
             " is not model.dtype=" + at(model, "dtype").text);
    const std::vector<std::string> inputs = texts(at(model, "inputs")), outputs = texts(at(model, "outputs"));
    if (!holds(inputs, "input_ids") || !holds(inputs, "attention_mask")) refuse("model.inputs lacks input_ids or attention_mask");
    if (holds(outputs, "sentence_embedding") != (at(root_, "embedding").kind != Kind::kNull))
      refuse("embedding=" + shown(at(root_, "embedding")) + " does not go with model.outputs");
    const Json &text = at(root_, "text"), &default_prompt = at(text, "default_prompt");
    if (default_prompt.kind != Kind::kNull && at(text, "prompts").find(default_prompt.text) == nullptr)
      refuse("text.default_prompt=" + shown(default_prompt) + " is none of text.prompts");
    if (at(model, "pad_token_id").integer >= at(model, "vocab_size").integer)
      refuse("model.pad_token_id=" + at(model, "pad_token_id").text +
             " is not below model.vocab_size=" + at(model, "vocab_size").text);
    if (tokenizer.kind != Kind::kNull) {
      check_listed(&at(tokenizer, "file"), "tokenizer.file");
      if (at(tokenizer, "max_length").integer > at(model, "max_seq_len").integer)
        refuse("tokenizer.max_length=" + at(tokenizer, "max_length").text +
               " is above model.max_seq_len=" + at(model, "max_seq_len").text);
    }
    if (license.kind != Kind::kNull) check_listed(&at(license, "file"), "license.file");
  }

  static std::vector<std::string> texts(const Json& list) {
    std::vector<std::string> out;
    for (const Json& item : list.items) out.push_back(item.text);
    return out;
  }
  static bool holds(const std::vector<std::string>& list, const char* name) {
    return std::find(list.begin(), list.end(), name) != list.end();
  }

  Bundle bundle() const {
    const Json &model = at(root_, "model"), &embedding = at(root_, "embedding"), &tokenizer = at(root_, "tokenizer");
    Bundle out;
    out.directory = directory_;
    out.architecture = at(model, "architecture").text;
    out.task = at(model, "task").text;
    out.hidden_size = at(model, "hidden_size").integer;
    out.max_seq_len = at(model, "max_seq_len").integer;
    out.vocab_size = at(model, "vocab_size").integer;
    out.pad_token_id = at(model, "pad_token_id").integer;
    out.length_step = at(model, "length_step").integer;
    out.inputs = texts(at(model, "inputs"));
    out.outputs = texts(at(model, "outputs"));
    if (embedding.kind != Kind::kNull) {
      const std::vector<Json>& modules = at(embedding, "modules").items;
      for (const std::string& mode : texts(at(modules.front(), "modes"))) out.pooling += (out.pooling.empty() ? "" : "+") + mode;
      out.include_prompt = at(modules.front(), "include_prompt").integer != 0;
      out.normalize = at(modules.back(), "kind").text == "Normalize";
      out.dimension = at(embedding, "dimension").integer;
      out.similarity = at(embedding, "similarity").text;
    }
    const Json &prompts = at(at(root_, "text"), "prompts"), &default_prompt = at(at(root_, "text"), "default_prompt");
    for (std::size_t i = 0; i < prompts.names.size(); ++i) out.prompts[prompts.names[i]] = prompts.items[i].text;
    if (default_prompt.kind != Kind::kNull) out.default_prompt = default_prompt.text;
    out.max_length = out.max_seq_len;
    if (tokenizer.kind != Kind::kNull) {
      out.tokenizer_file = directory_ + "/" + at(tokenizer, "file").text;
      if (at(root_, "files").find(kTablesFile) != nullptr) out.tables_file = directory_ + "/" + kTablesFile;
      out.max_length = at(tokenizer, "max_length").integer;
      out.truncation_side = at(tokenizer, "truncation_side").text;
    }
    for (const Json& entry : at(root_, "variants").items) {
      const Json &library = at(entry, "library"), *version = entry.find("backend_version");
      out.variants.push_back({at(entry, "backend").text, at(entry, "file").text, directory_ + "/" + at(entry, "file").text,
                              at(entry, "precision").text, library.kind == Kind::kNull ? "" : directory_ + "/" + library.text,
                              version == nullptr ? "" : version->text});
    }
    return out;
  }

  std::string directory_;
  std::string path_;
  std::string text_;
  Json root_;
};

}  // namespace

Bundle read_bundle(const std::string& directory, bool verify_files) {
  try {
    ManifestReader reader(directory);
    Bundle bundle = reader.read();
    if (verify_files) reader.verify_files();
    return bundle;
  } catch (const fs::filesystem_error& error) {
    fail(Code::kInput, error.path1().string() + " cannot be read: " + error.code().message() + ".");
  }
}

}  // namespace mra::serving

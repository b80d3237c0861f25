// libmra_serving_python.so: Hugging Face's tokenizers in Python, hosted in this process, for tokenizers of every kind.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "failure.h"
#include "text_backend.h"

namespace mra::serving {
namespace {

constexpr const char* kInstall =
    " Install it with `pip install tokenizers`, and name the folder that it is in with python_site or "
    "MRA_SERVING_PYTHON_SITE.";

// A reference that is given back. The GIL is held where one is made and where it ends.
class Object {
 public:
  explicit Object(PyObject* owned = nullptr) : object_(owned) {}
  Object(Object&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Object& operator=(Object&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Object() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

// Holds the GIL, from whatever thread.
class Gil {
 public:
  Gil() : state_(PyGILState_Ensure()) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;
  Gil& operator=(const Gil&) = delete;

 private:
  PyGILState_STATE state_;
};

// What Python raised, which is then forgotten.
std::string raised() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  const Object kind(type), error(value), where(trace);
  const Object text(error ? PyObject_Str(error.get()) : nullptr);
  const char* said = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  std::string out = said != nullptr ? said : "no reason given";
  PyErr_Clear();
  return out;
}

Object checked(PyObject* made, Code code, const std::string& what) {
  if (made == nullptr) fail(code, what + ": " + raised());
  return Object(made);
}

// Starts Python once in this process, isolated from its environment and its user's files; never ended, as its extension modules and
// other encoders may be in use. Where the program runs Python already, that one is taken.
void start_python() {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (Py_IsInitialized()) return;
  // This library was loaded for itself, and so was Python's with it: extension modules look for its names among those of all.
  if (Dl_info info{}; dladdr(reinterpret_cast<void*>(&Py_IsInitialized), &info) != 0)
    dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
  PyConfig config;
  PyConfig_InitIsolatedConfig(&config);
  config.site_import = 0;
  config.write_bytecode = 0;
  config.install_signal_handlers = 0;
  PyStatus status = PyStatus_Ok();
  if (std::error_code error; std::filesystem::is_directory(MRA_SERVING_PYTHON_HOME, error))
    status = PyConfig_SetBytesString(&config, &config.home, MRA_SERVING_PYTHON_HOME);
  if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
  const std::string reason = PyStatus_Exception(status) && status.err_msg != nullptr ? status.err_msg : "no reason given";
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status))
    fail(Code::kEnvironment, "Python " PY_VERSION " cannot be started: " + reason + ". Install that release of Python.");
  // The thread that started it holds the GIL: from here on, who wants it takes it.
  PyEval_SaveThread();
}

// The module tokenizers: where Python finds it, as a program's own Python may, else in the folder `site`.
Object import_tokenizers(const std::string& site) {
  const bool has_site = !site.empty();
  if (Object known(PyImport_ImportModule("tokenizers")); known) return known;
  std::string why = raised();
  if (has_site) {
    const Object folder = checked(PyUnicode_DecodeFSDefault(site.c_str()), Code::kEnvironment, site);
    PyObject* path = PySys_GetObject("path");  // borrowed
    if (path == nullptr || PyList_Append(path, folder.get()) != 0)
      fail(Code::kEnvironment, "sys.path cannot be changed: " + raised());
    if (Object found(PyImport_ImportModule("tokenizers")); found) return found;
    why = raised();
  }
  fail(Code::kEnvironment, "The Python package tokenizers cannot be imported" + (has_site ? " from " + site : std::string()) +
                               ": " + why + "." + kInstall);
}

class PythonEncoder final : public TextEncoder {
 public:
  explicit PythonEncoder(const TextRequest& request) : vocab_size_(request.vocab_size) {
    const char* named = std::getenv("MRA_SERVING_PYTHON_SITE");
    const std::string site = !request.python_site.empty()         ? request.python_site
                             : named != nullptr && *named != '\0' ? named
                                                                  : MRA_SERVING_PYTHON_SITE_DEFAULT;
    start_python();
    const Gil gil;
    const Object module = import_tokenizers(site);
    const Object version(PyObject_GetAttrString(module.get(), "__version__"));
    const char* number = version ? PyUnicode_AsUTF8(version.get()) : nullptr;
    name_ = std::string("tokenizers ") + (number != nullptr ? number : "of an unknown version") + " in Python " +
            std::string(Py_GetVersion()).substr(0, std::string(Py_GetVersion()).find(' '));
    PyErr_Clear();
    const std::string what = request.file + " cannot be read as a tokenizer";
    const Object kind = checked(PyObject_GetAttrString(module.get(), "Tokenizer"), Code::kEnvironment, what);
    Object tokenizer = checked(PyObject_CallMethod(kind.get(), "from_file", "s", request.file.c_str()), Code::kInput, what);
    checked(PyObject_CallMethod(tokenizer.get(), "no_padding", nullptr), Code::kInput, what);
    const Object method = checked(PyObject_GetAttrString(tokenizer.get(), "enable_truncation"), Code::kInput, what);
    const Object none = checked(PyTuple_New(0), Code::kInternal, what);
    const Object options = checked(Py_BuildValue("{s:L,s:s}", "max_length", static_cast<long long>(request.max_length), "direction",
                                                 request.cuts_left ? "left" : "right"),
                                   Code::kInternal, what);
    checked(PyObject_Call(method.get(), none.get(), options.get()), Code::kInput,
            request.file + " cannot cut texts to " + std::to_string(request.max_length) + " tokens");
    encode_ = checked(PyObject_GetAttrString(tokenizer.get(), "encode_batch_fast"), Code::kEnvironment,
                      "This release of tokenizers is too old: 0.20 is needed");
  }

  ~PythonEncoder() override {
    if (!Py_IsInitialized()) return;  // the program's Python has ended before
    const Gil gil;
    encode_ = Object();
  }

  const char* name() const noexcept override { return name_.c_str(); }

  Status encode(const std::string_view* texts, std::size_t count,
                std::vector<std::vector<std::int64_t>>* ids) const noexcept override {
    return guarded([&] {
      ids->assign(count, {});
      if (count == 0) return;
      if (!Py_IsInitialized())
        fail(Code::kEnvironment, "Python, which the program ran, has ended; texts cannot be tokenized any more.");
      const Gil gil;
      const std::string what = "The tokenizer failed";
      const Object list = checked(PyList_New(static_cast<Py_ssize_t>(count)), Code::kInternal, what);
      for (std::size_t i = 0; i < count; ++i) {
        Object text = checked(PyUnicode_DecodeUTF8(texts[i].data(), static_cast<Py_ssize_t>(texts[i].size()), nullptr),
                              Code::kInput, "Text " + std::to_string(i) + " is not UTF-8");
        PyList_SetItem(list.get(), static_cast<Py_ssize_t>(i), text.release());
      }
      // The package gives the GIL up while it encodes, and uses all cores where there are several texts.
      const Object encodings = checked(PyObject_CallFunctionObjArgs(encode_.get(), list.get(), nullptr), Code::kInternal, what);
      for (std::size_t i = 0; i < count; ++i) {
        const Object encoding = checked(PySequence_GetItem(encodings.get(), static_cast<Py_ssize_t>(i)), Code::kInternal, what);
        (*ids)[i] = numbers(encoding.get(), "ids");
        for (const std::int64_t type : numbers(encoding.get(), "type_ids"))
          if (type != 0) fail(Code::kInput, "This tokenizer gives token types, which are not taken here. Use `mra-export embed`.");
        for (const std::int64_t id : (*ids)[i])
          if (id < 0 || id >= vocab_size_)
            fail(Code::kInput, "The tokenizer gives the id " + std::to_string(id) + ", and the model's are 0 to " +
                                   std::to_string(vocab_size_ - 1) + ".");
      }
    });
  }

 private:
  static std::vector<std::int64_t> numbers(PyObject* encoding, const char* name) {
    const std::string what = std::string("An encoding has no ") + name;
    const Object list = checked(PyObject_GetAttrString(encoding, name), Code::kInternal, what);
    const Py_ssize_t size = PyList_Check(list.get()) ? PyList_Size(list.get()) : -1;
    if (size < 0) fail(Code::kInternal, what + ": it is no list.");
    std::vector<std::int64_t> out(static_cast<std::size_t>(size));
    for (Py_ssize_t i = 0; i < size; ++i) out[static_cast<std::size_t>(i)] = PyLong_AsLongLong(PyList_GetItem(list.get(), i));
    if (PyErr_Occurred() != nullptr) fail(Code::kInternal, what + ": " + raised());
    return out;
  }

  std::int64_t vocab_size_;
  std::string name_;
  Object encode_;
};

Status open(const TextRequest& request, std::shared_ptr<const TextEncoder>* encoder) noexcept {
  return guarded([&] { *encoder = std::make_shared<PythonEncoder>(request); });
}

}  // namespace
}  // namespace mra::serving

extern "C" __attribute__((visibility("default"))) const mra::serving::TextLibrary* mra_serving_text() {
  static const mra::serving::TextLibrary library{mra::serving::kTextBuild, "python", mra::serving::open};
  return &library;
}

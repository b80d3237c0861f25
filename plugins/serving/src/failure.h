// How errors travel inside the library: thrown as Failure, caught at its border and handed out as a Status.
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "json.h"
#include "mra/serving.h"

namespace mra::serving {

struct Failure {
  Status status;
};

[[noreturn]] inline void fail(Code code, std::string message) { throw Failure{Status{code, std::move(message)}}; }

// Runs `body` and turns whatever it throws into a Status; what it quotes of files and names cannot steer a terminal. The message of
// a bad_alloc fits into a string without allocating.
template <typename Body>
Status guarded(Body&& body) noexcept {
  try {
    try {
      body();
      return {};
    } catch (const Failure& failure) {
      return {failure.status.code, detail::printable(failure.status.message)};
    } catch (const std::length_error&) {
      return {Code::kInput, "The texts are more than this process can address. Give fewer at a time."};
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return {Code::kInternal, detail::printable(error.what())};
    }
  } catch (...) {
  }
  Status status;
  status.code = Code::kInternal;
  status.message = "out of memory";
  return status;
}

}  // namespace mra::serving

// Vectors as float16 and int8, the numbers that `mra-export embed --output-type` writes.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "failure.h"
#include "mra/serving.h"

namespace mra::serving {
namespace {

constexpr float kLargestHalf = 65504;

// The nearest float16, of two the even one; its bits.
std::uint16_t half(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = (bits >> 16) & 0x8000, exponent = (bits >> 23) & 0xFF, fraction = bits & 0x7FFFFF;
  if (exponent < 102) return static_cast<std::uint16_t>(sign);  // below half of the smallest
  // The significand with its hidden one, in units of the result's last place.
  const std::uint32_t significand = fraction | 0x800000, shift = exponent < 113 ? 126 - exponent : 13;
  std::uint32_t rounded = significand >> shift;
  const std::uint32_t rest = significand & ((1U << shift) - 1), middle = 1U << (shift - 1);
  rounded += rest > middle || (rest == middle && (rounded & 1) != 0) ? 1 : 0;
  const std::uint32_t base = exponent < 113 ? 0 : (exponent - 113) << 10;  // the hidden one adds 1 to the exponent
  return static_cast<std::uint16_t>(sign | (base + rounded));
}

}  // namespace

Status convert(const float* vectors, std::size_t rows, std::size_t columns, Numbers numbers, void* out, float* scales) noexcept {
  return guarded([&] {
    if (rows * columns > 0 && (vectors == nullptr || out == nullptr || (numbers == Numbers::kInt8 && scales == nullptr)))
      fail(Code::kInput, "vectors, out and for int8 scales must not be null where there are vectors.");
    for (std::size_t row = 0; row < rows; ++row, vectors += columns) {
      float largest = 0;
      for (std::size_t d = 0; d < columns; ++d) {
        if (!std::isfinite(vectors[d]))
          fail(Code::kInput, "The vector of row " + std::to_string(row) + " has values that are not finite.");
        largest = std::max(largest, std::abs(vectors[d]));
      }
      if (numbers == Numbers::kFloat32) {
        std::memcpy(static_cast<float*>(out) + row * columns, vectors, columns * sizeof(float));
      } else if (numbers == Numbers::kFloat16) {
        if (largest >= kLargestHalf + 16)  // which would be rounded up
          fail(Code::kInput, "The vector of row " + std::to_string(row) + " has values beyond 65504, the largest of float16.");
        for (std::size_t d = 0; d < columns; ++d) static_cast<std::uint16_t*>(out)[row * columns + d] = half(vectors[d]);
      } else {
        const double factor = 127 / static_cast<double>(largest > 0 ? largest : 1);
        for (std::size_t d = 0; d < columns; ++d)
          static_cast<std::int8_t*>(out)[row * columns + d] =
              static_cast<std::int8_t>(std::nearbyint(static_cast<double>(vectors[d]) * factor));
        scales[row] = largest / 127;
      }
    }
  });
}

}  // namespace mra::serving

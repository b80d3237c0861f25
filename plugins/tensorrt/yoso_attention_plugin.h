// mra::YosoAttention as a TensorRT plugin.
#pragma once

#include "attention_plugin.h"

namespace mra::trt {

extern const Operator kYosoAttention;

}  // namespace mra::trt

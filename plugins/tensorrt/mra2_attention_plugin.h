// mra::Mra2Attention as a TensorRT plugin.
#pragma once

#include "attention_plugin.h"

namespace mra::trt {

extern const Operator kMra2Attention;

}  // namespace mra::trt

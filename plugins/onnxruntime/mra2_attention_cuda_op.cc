// The operator for ONNX Runtime's CUDA provider.
#include "cuda_op.h"
#include "mra2_attention_cuda.h"
#include "mra2_attention_op.h"

namespace mra::ort {
namespace {

struct Mra2Attention {
  using Params = Mra2AttentionParams;
  using OpType = Op;
  static constexpr auto read_attributes = ort::read_attributes;
  static constexpr auto read_tensors = ort::read_tensors;
  static constexpr auto run = mra2_attention_cuda;
};

}  // namespace

const Op (&cuda_ops())[3] {
  using Functions = CudaOp<Mra2Attention>;
  static const Op ops[] = {{kCudaProvider, DType::kFloat32, Functions::create, Functions::compute, Functions::destroy},
                           {kCudaProvider, DType::kFloat16, Functions::create, Functions::compute, Functions::destroy},
                           {kCudaProvider, DType::kBFloat16, Functions::create, Functions::compute, Functions::destroy}};
  return ops;
}

}  // namespace mra::ort

// mra::YosoAttention for ONNX Runtime's CUDA provider.
#include "cuda_op.h"
#include "yoso_attention_cuda.h"
#include "yoso_attention_op.h"

namespace mra::ort {
namespace {

struct YosoAttention {
  using Params = YosoAttentionParams;
  using OpType = YosoOp;
  static constexpr auto read_attributes = read_yoso_attributes;
  static constexpr auto read_tensors = read_yoso_tensors;
  static constexpr auto run = yoso_attention_cuda;
};

}  // namespace

const YosoOp (&yoso_cuda_ops())[3] {
  using Functions = CudaOp<YosoAttention>;
  static const YosoOp ops[] = {{kCudaProvider, DType::kFloat32, Functions::create, Functions::compute, Functions::destroy},
                               {kCudaProvider, DType::kFloat16, Functions::create, Functions::compute, Functions::destroy},
                               {kCudaProvider, DType::kBFloat16, Functions::create, Functions::compute, Functions::destroy}};
  return ops;
}

}  // namespace mra::ort

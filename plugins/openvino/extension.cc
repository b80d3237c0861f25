// The library's only exported function: the operators for OpenVINO, as nodes of an ONNX file and of OpenVINO's own IR.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/core/version.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>

#include "attention_op.h"
#include "mra2_attention/mra2_attention.h"
#include "yoso_attention/yoso_attention.h"

// Which release the library was built for: it runs with no other. mra_export.native.libraries reads it from the file.
extern "C" __attribute__((visibility("default"), used)) const char mra_openvino_release[] =
    "mra-openvino-release=" MRA_OPENVINO_RELEASE;

namespace mra::openvino {
namespace {

struct Mra2Attention {
  using Params = Mra2AttentionParams;
  static constexpr auto& kType = kOpType;

  template <typename Visit>
  static void attributes(Params& params, Visit&& visit) {
    visit(kAttributeNames[0], params.num_heads);
    visit(kAttributeNames[1], params.num_blocks);
    visit(kAttributeNames[2], params.approx_mode);
    visit(kAttributeNames[3], params.initial_prior_first_n_blocks);
    visit(kAttributeNames[4], params.initial_prior_diagonal_n_blocks);
    visit(kAttributeNames[5], params.scale);
  }
  static std::size_t inputs(const Params&) { return kFirstConstant; }
  static void read_constants(const ov::TensorVector&, Params*) {}
  static void run(const Params& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) {
    mra2_attention_cpu(params, workspace, isa, parallel_for);
  }
};

struct YosoAttention {
  using Params = YosoAttentionParams;
  static constexpr auto& kType = kYosoOpType;

  template <typename Visit>
  static void attributes(Params& params, Visit&& visit) {
    visit(kYosoAttributeNames[0], params.num_heads);
    visit(kYosoAttributeNames[1], params.mode);
    visit(kYosoAttributeNames[2], params.hash_code_len);
    visit(kYosoAttributeNames[3], params.num_hash);
    visit(kYosoAttributeNames[4], params.fast_hash);
    visit(kYosoAttributeNames[5], params.conv_window);
  }
  static std::size_t inputs(const Params& params) {
    return kFirstConstant + (params.lsh() ? 1 : 0) + (params.conv_window > 0 ? 1 : 0);
  }
  // The constants follow without gaps: hash_constants in mode lsh, then conv_weight if there is a convolution.
  static void read_constants(const ov::TensorVector& inputs, Params* params) {
    std::size_t next = kFirstConstant;
    std::int64_t dims[4];
    if (params->lsh()) {
      const int rank = params->hash_constants_shape(dims);
      check(inputs[next], kYosoInputNames[kFirstConstant], ov::element::i32, ov::Shape(dims, dims + rank));
      params->hash_constants = inputs[next++].data<const std::int32_t>();
    }
    if (params->conv_window > 0) {
      dims[0] = params->num_heads;
      dims[1] = params->conv_window;
      check(inputs[next], kYosoInputNames[kFirstConstant + 1], inputs[kQuery].get_element_type(), ov::Shape(dims, dims + 2));
      params->conv_weight = inputs[next++].data();
    }
  }
  static void run(const Params& params, void* workspace, CpuIsa isa, ParallelFor parallel_for) {
    yoso_attention_cpu(params, workspace, isa, parallel_for);
  }

 private:
  static void check(const ov::Tensor& tensor, const char* name, ov::element::Type type, const ov::Shape& shape) {
    OPENVINO_ASSERT(tensor.get_element_type() == type && tensor.get_shape() == shape, kType, ": ", name, " is ",
                    tensor.get_element_type(), tensor.get_shape(), "; by the attributes it must be ", type, shape, ".");
  }
};

template <typename Definition>
void add(std::vector<ov::Extension::Ptr>* extensions) {
  using Op = AttentionOp<Definition>;
  extensions->push_back(std::make_shared<ov::OpExtension<Op>>());
  extensions->push_back(std::make_shared<ov::frontend::onnx::ConversionExtension>(Definition::kType, kOpDomain, Op::convert));
}

std::vector<ov::Extension::Ptr> extensions() {
  std::vector<ov::Extension::Ptr> made;
  add<Mra2Attention>(&made);
  add<YosoAttention>(&made);
  return made;
}

}  // namespace
}  // namespace mra::openvino

OPENVINO_CREATE_EXTENSIONS(mra::openvino::extensions());

// The attributes and inputs of mra::Mra2Attention, translated to the params struct.
#include "mra2_attention_op.h"

namespace mra::ort {

OrtStatus* Mra2AttentionOp::read_attributes(const OrtKernelInfo& info, DType dtype, Params* params) {
  static constexpr std::int64_t Params::* kIntegers[] = {&Params::num_heads, &Params::num_blocks, &Params::approx_mode,
                                                         &Params::initial_prior_first_n_blocks,
                                                         &Params::initial_prior_diagonal_n_blocks};
  constexpr int kScale = 5;  // in kAttributeNames
  MRA_RETURN_IF_ERROR(read_integers(info, kAttributeNames, kIntegers, params));
  MRA_RETURN_IF_ERROR(api->KernelInfoGetAttribute_float(&info, kAttributeNames[kScale], &params->scale));
  params->dtype = dtype;
  return check_attributes(*params);
}

OrtStatus* Mra2AttentionOp::read_tensors(OrtKernelContext& context, Params* params) {
  constexpr char kDifference[] = "%s has size %lld in dimension %zu, and query has %lld; they must be equal.";
  MRA_RETURN_IF_ERROR(read_call(context, kInputNames, kDifference, params));
  return allocate_context(context, params);
}

}  // namespace mra::ort

// What every attention operator is to OpenVINO: an op whose evaluate() runs the CPU kernel in the threads of the stream that calls it,
// on the tensors that the plugin hands over, with scratch memory that the op owns.
#pragma once

#include <openvino/core/parallel.hpp>
#include <openvino/frontend/node_context.hpp>
#include <openvino/op/op.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/call.h"

namespace mra::openvino {

constexpr std::size_t kMessageSize = 512;

// An attribute that only OpenVINO's node has, and its IR: the level of parse_accuracy. An IR without it means fp32.
constexpr char kAccuracyAttribute[] = "accuracy";

// Every operator has these inputs. Those that only some attributes ask for follow without gaps.
enum Input : std::size_t { kQuery, kKey, kValue, kAttentionMask, kFirstConstant };

// Scratch buffers for calls at the same time: a call takes one that is free and gives it back. They live as long as the op does,
// which is as long as the compiled model; there are as many as calls ever ran at once, each as large as its largest call.
class Scratch {
 public:
  class Lease {
   public:
    Lease(Scratch* owner, std::size_t size) : owner_(owner), memory_(owner->take(size)) {}
    ~Lease() { owner_->give_back(std::move(memory_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    void* data() { return memory_.data(); }

   private:
    Scratch* owner_;
    std::vector<std::max_align_t> memory_;
  };

 private:
  std::vector<std::max_align_t> take(std::size_t size) {
    std::vector<std::max_align_t> memory;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        memory = std::move(free_.back());
        free_.pop_back();
      }
    }
    const std::size_t count = size / sizeof(std::max_align_t) + 1;
    if (memory.size() < count) {
      memory.clear();  // nothing of the old content is to be copied
      memory.resize(count);
    }
    return memory;
  }

  void give_back(std::vector<std::max_align_t>&& memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(memory));
  }

  std::mutex mutex_;
  std::vector<std::vector<std::max_align_t>> free_;
};

// ParallelFor::run in the arena of the calling thread, which is that of OpenVINO's stream.
inline void run_in_arena(void*, void (*task)(void*, std::size_t), void* argument, std::size_t count) {
  // One task a piece: threads take the next one when they are free, for tasks differ in length.
  tbb::parallel_for(std::size_t{0}, count, [&](std::size_t i) { task(argument, i); }, tbb::simple_partitioner());
}

// An operator. Definition has
//   Params            the params struct, which holds the attributes
//   kType             the operator's name
//   attributes        calls visit(name, member) for each attribute of params
//   inputs            how many inputs these attributes ask for
//   read_constants    completes params with the inputs from kFirstConstant on; empty, or what is wrong with them
//   run               the CPU kernel
template <typename Definition>
class AttentionOp : public ov::op::Op {
 public:
  using Params = typename Definition::Params;

  static const ov::DiscreteTypeInfo& get_type_info_static() {
    static const ov::DiscreteTypeInfo info = [] {
      ov::DiscreteTypeInfo made(Definition::kType, kOpDomain);
      made.hash();
      return made;
    }();
    return info;
  }
  const ov::DiscreteTypeInfo& get_type_info() const override { return get_type_info_static(); }

  AttentionOp() = default;
  AttentionOp(const ov::OutputVector& inputs, const Params& attributes, const std::string& accuracy = "fp32")
      : Op(inputs), attributes_(attributes), accuracy_(accuracy) {
    constructor_validate_and_infer_types();
  }

  // Reads a node of an ONNX file.
  static ov::OutputVector convert(const ov::frontend::NodeContext& node) {
    Params attributes;
    Definition::attributes(
        attributes, [&](const char* name, auto& member) { member = node.get_attribute<std::decay_t<decltype(member)>>(name); });
    ov::OutputVector inputs;
    for (std::size_t i = 0; i < node.get_input_size(); ++i) inputs.push_back(node.get_input(static_cast<int>(i)));
    return {std::make_shared<AttentionOp>(inputs, attributes)->output(0)};
  }

  void validate_and_infer_types() override {
    const std::size_t wanted = Definition::inputs(attributes_);
    NODE_VALIDATION_CHECK(this, get_input_size() == wanted, "it has ", get_input_size(), " inputs; by its attributes it must have ",
                          wanted, ". Export the model again.");
    NODE_VALIDATION_CHECK(this, get_input_element_type(kAttentionMask).compatible(ov::element::i32), "attention_mask is ",
                          get_input_element_type(kAttentionMask), "; it must be i32.");
    // The attributes with the smallest of sizes, so that a bad one fails where the model is read.
    Params smallest = attributes_;
    smallest.batch = smallest.seq_len = 1;
    smallest.hidden_size = attributes_.num_heads < (1 << 30) ? attributes_.num_heads * kHeadDimMultiple : attributes_.num_heads;
    char message[kMessageSize];
    NODE_VALIDATION_CHECK(this, validate(smallest, message, sizeof(message)), message);
    Accuracy accuracy;
    NODE_VALIDATION_CHECK(this, parse_accuracy(kAccuracyAttribute, accuracy_.c_str(), &accuracy, message, sizeof(message)),
                          message);
    set_output_type(0, get_input_element_type(kQuery), get_input_partial_shape(kQuery));
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    Definition::attributes(attributes_, [&](const char* name, auto& member) { visitor.on_attribute(name, member); });
    visitor.on_attribute(kAccuracyAttribute, accuracy_);
    return true;
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<AttentionOp>(inputs, attributes_, accuracy_);
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    Params params = attributes_;
    const ov::Shape shape = inputs[kQuery].get_shape();
    OPENVINO_ASSERT(shape.size() == 3, Definition::kType, ": query has ", shape.size(), " dimensions; it must have 3.");
    OPENVINO_ASSERT(inputs[kKey].get_shape() == shape && inputs[kValue].get_shape() == shape, Definition::kType,
                    ": key and value have the shapes ", inputs[kKey].get_shape(), " and ", inputs[kValue].get_shape(),
                    "; they must have that of query, ", shape, ".");
    OPENVINO_ASSERT((inputs[kAttentionMask].get_shape() == ov::Shape{shape[0], shape[1]}), Definition::kType,
                    ": attention_mask has the shape ", inputs[kAttentionMask].get_shape(), "; by query it must have ",
                    (ov::Shape{shape[0], shape[1]}), ".");
    params.dtype = dtype_of(inputs[kQuery].get_element_type());
    params.query = inputs[kQuery].data();
    params.key = inputs[kKey].data();
    params.value = inputs[kValue].data();
    params.attention_mask = inputs[kAttentionMask].data<const std::int32_t>();
    params.batch = static_cast<std::int64_t>(shape[0]);
    params.seq_len = static_cast<std::int64_t>(shape[1]);
    params.hidden_size = static_cast<std::int64_t>(shape[2]);
    char message[kMessageSize];
    OPENVINO_ASSERT(validate(params, message, sizeof(message)), Definition::kType, ": ", message);
    Definition::read_constants(inputs, &params);
    outputs[0].set_shape(shape);
    params.context = outputs[0].data();
    if (params.batch == 0) return true;
    Accuracy accuracy = Accuracy::kFp32;
    CpuIsa isa = CpuIsa::kPortable;
    OPENVINO_ASSERT(parse_accuracy(kAccuracyAttribute, accuracy_.c_str(), &accuracy, message, sizeof(message)) &&
                        choose_cpu_isa(std::getenv("MRA_CPU_ISA"), accuracy, &isa, message, sizeof(message)),
                    Definition::kType, ": ", message);
    Scratch::Lease workspace(scratch_.get(), cpu_workspace_size(params, isa));
    Definition::run(params, workspace.data(), isa, {run_in_arena, nullptr});
    return true;
  }

 private:
  static DType dtype_of(ov::element::Type type) {
    if (type == ov::element::f32) return DType::kFloat32;
    if (type == ov::element::f16) return DType::kFloat16;
    OPENVINO_ASSERT(type == ov::element::bf16, Definition::kType, " cannot compute in ", type, ".");
    return DType::kBFloat16;
  }

  Params attributes_;
  std::string accuracy_ = "fp32";
  std::shared_ptr<Scratch> scratch_ = std::make_shared<Scratch>();
};

}  // namespace mra::openvino

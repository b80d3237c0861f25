# mra_kernels_cuda: the operators' CUDA kernels. The architectures are CMAKE_CUDA_ARCHITECTURES; "native" builds for this machine's GPU.
set(mra_architectures_given ${CMAKE_CUDA_ARCHITECTURES})
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80)  # for the compiler check; the target's own list follows
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "nvcc was not found. Install the CUDA toolkit 12 or newer, or set -DCMAKE_CUDA_COMPILER=PATH.")
endif()
enable_language(CUDA)

if(NOT mra_architectures_given)
  include(${CMAKE_CURRENT_LIST_DIR}/cuda_architectures.cmake)
  mra_cuda_architectures(${CMAKE_CUDA_COMPILER_VERSION} mra_architectures_given)
endif()
message(STATUS "CUDA kernels for ${mra_architectures_given}")

add_library(mra_kernels_cuda STATIC
  mra2_attention/cuda/mra2_attention_cuda.cu
  yoso_attention/cuda/yoso_attention_cuda.cu)
# nvcc knows none of the host compiler's options that the whole project sets.
set_target_properties(mra_kernels_cuda PROPERTIES
  COMPILE_OPTIONS ""
  CUDA_ARCHITECTURES "${mra_architectures_given}"
  CUDA_STANDARD 17
  CUDA_STANDARD_REQUIRED ON
  CUDA_VISIBILITY_PRESET hidden
  CUDA_RUNTIME_LIBRARY Static)
target_compile_options(mra_kernels_cuda PRIVATE -Xcompiler=-Wall,-Wextra)
target_include_directories(mra_kernels_cuda PUBLIC ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(mra_kernels_cuda PUBLIC mra_kernels_common)
string(REPLACE ";" "," mra_architectures_text "${mra_architectures_given}")
# The plugins can say what they were built for.
target_compile_definitions(mra_kernels_cuda INTERFACE MRA_CUDA_ARCHITECTURES="${mra_architectures_text}")

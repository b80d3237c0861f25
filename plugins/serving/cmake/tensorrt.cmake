# libmra_serving_tensorrt.so or libmra_serving_rtx.so: the backend for engines, loaded by libmra_serving when it opens one.
# The machine that only runs ONNX Runtime needs neither it nor TensorRT nor CUDA.
mra_find_tensorrt()
find_library(MRA_TENSORRT_LIBRARY NAMES nvinfer tensorrt_rtx libnvinfer.so.10 libnvinfer.so.11
  PATHS /usr/local/tensorrt/lib /opt/tensorrt/lib DOC "libnvinfer.so or libtensorrt_rtx.so, of the headers' version")
if(NOT EXISTS "${MRA_TENSORRT_LIBRARY}")
  message(FATAL_ERROR "libnvinfer.so was not found. Install TensorRT, or set -DMRA_TENSORRT_LIBRARY=FILE.")
endif()
# TensorRT's headers and TensorRT-RTX's have the same names and other binary interfaces.
file(STRINGS ${MRA_TENSORRT_INCLUDE}/NvInferVersion.h mra_rtx_headers REGEX "define TRT_MAJOR_RTX ")
get_filename_component(mra_tensorrt_file ${MRA_TENSORRT_LIBRARY} NAME)
if(mra_tensorrt_file MATCHES "tensorrt_rtx")
  set(mra_backend rtx)
  if(NOT mra_rtx_headers)
    message(WARNING "${MRA_TENSORRT_INCLUDE} has the headers of TensorRT, not of TensorRT-RTX: the backend links, but refuses to "
      "run. Set -DMRA_TENSORRT_INCLUDE to the include folder of TensorRT-RTX's SDK.")
  endif()
else()
  set(mra_backend tensorrt)
  if(mra_rtx_headers)
    message(WARNING "${MRA_TENSORRT_INCLUDE} has the headers of TensorRT-RTX, and ${MRA_TENSORRT_LIBRARY} is TensorRT: the backend "
      "links, but refuses to run.")
  endif()
endif()

set(MRA_CUDART_LIBRARY "" CACHE FILEPATH "CUDA's runtime library; empty for the toolkit's static one")
if(NOT MRA_CUDART_LIBRARY)
  # FindCUDAToolkit insists on libcudart.so; NVIDIA's wheels have it with its version in the name only. Nowhere but in the toolkit
  # that was named: the folder of what is found here is where FindCUDAToolkit looks for the other libraries.
  find_library(CUDA_CUDART NAMES cudart libcudart.so.13 libcudart.so.12
    PATHS ${CUDAToolkit_ROOT} PATH_SUFFIXES lib64 lib NO_DEFAULT_PATH)
  find_package(CUDAToolkit REQUIRED)
endif()

add_library(mra_serving_backend MODULE src/tensorrt_backend.cc)
set_target_properties(mra_serving_backend PROPERTIES OUTPUT_NAME mra_serving_${mra_backend} INSTALL_RPATH_USE_LINK_PATH ON)
target_compile_definitions(mra_serving_backend PRIVATE MRA_BACKEND_NAME="${mra_backend}")
target_include_directories(mra_serving_backend PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_include_directories(mra_serving_backend SYSTEM PRIVATE ${MRA_TENSORRT_INCLUDE})
if(MRA_CUDART_LIBRARY)
  set(MRA_CUDA_INCLUDE "" CACHE PATH "Directory of cuda_runtime_api.h")
  target_include_directories(mra_serving_backend SYSTEM PRIVATE ${MRA_CUDA_INCLUDE})
  target_link_libraries(mra_serving_backend PRIVATE ${MRA_CUDART_LIBRARY})
else()
  target_link_libraries(mra_serving_backend PRIVATE CUDA::cudart_static)
endif()
target_link_libraries(mra_serving_backend PRIVATE ${MRA_TENSORRT_LIBRARY} Threads::Threads ${CMAKE_DL_LIBS})
target_link_options(mra_serving_backend PRIVATE -Wl,--no-undefined)
install(TARGETS mra_serving_backend LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

# Finds headers that this repository does not ship: by -D or environment variable, of the system, or fetched by
# scripts/fetch_headers.py into the cache that mra_export.native.libraries.user_cache_dir names.
if(NOT "$ENV{MRA_EXPORT_CACHE_DIR}" STREQUAL "")
  set(mra_cache $ENV{MRA_EXPORT_CACHE_DIR})
elseif(NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
  set(mra_cache $ENV{XDG_CACHE_HOME}/mra-export)
else()
  set(mra_cache $ENV{HOME}/.cache/mra-export)
endif()

# MRA_ONNXRUNTIME_INCLUDE: the directory of `header`, of ONNX Runtime 1.21 or newer.
macro(mra_find_onnxruntime header)
  find_path(MRA_ONNXRUNTIME_INCLUDE ${header}
    HINTS $ENV{MRA_ONNXRUNTIME_INCLUDE} ${mra_cache}/headers/onnxruntime
    PATH_SUFFIXES onnxruntime onnxruntime/core/session
    DOC "Directory of ${header}, 1.21 or newer")
  if(NOT MRA_ONNXRUNTIME_INCLUDE)
    message(FATAL_ERROR "${header} was not found. Run scripts/fetch_headers.py onnxruntime, install "
      "libonnxruntime-dev, or set -DMRA_ONNXRUNTIME_INCLUDE=DIR.")
  endif()
endmacro()

# MRA_TENSORRT_INCLUDE: the directory of NvInferRuntime.h.
macro(mra_find_tensorrt)
  find_path(MRA_TENSORRT_INCLUDE NvInferRuntime.h
    HINTS $ENV{MRA_TENSORRT_INCLUDE} ${mra_cache}/headers/tensorrt
    PATHS /usr/local/tensorrt/include /opt/tensorrt/include
    PATH_SUFFIXES x86_64-linux-gnu aarch64-linux-gnu
    DOC "Directory of NvInferRuntime.h: TensorRT 10.3 or newer, or TensorRT-RTX")
  if(NOT MRA_TENSORRT_INCLUDE)
    message(FATAL_ERROR "NvInferRuntime.h was not found. Run scripts/fetch_headers.py tensorrt, install libnvinfer-headers-dev, "
      "or set -DMRA_TENSORRT_INCLUDE=DIR.")
  endif()
endmacro()

# Finds headers that this repository does not ship: by -D or environment variable, of the system, or fetched by `mra-export build`
# or scripts/fetch_headers.py into the cache that mra_export.native.libraries.user_cache_dir names.
set(MRA_EXPORT_CACHE_DIR "$ENV{MRA_EXPORT_CACHE_DIR}" CACHE PATH "Cache of mra-export, with the fetched headers; empty for the user's")
if(NOT "${MRA_EXPORT_CACHE_DIR}" STREQUAL "")
  # A relative one begins where the command was given, as in Python; -D has been made absolute already.
  get_filename_component(mra_cache "${MRA_EXPORT_CACHE_DIR}" ABSOLUTE BASE_DIR "$ENV{PWD}")
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
    message(FATAL_ERROR "${header} was not found. Run `mra-export build onnxruntime`, which fetches it, install "
      "libonnxruntime-dev, or set -DMRA_ONNXRUNTIME_INCLUDE=DIR.")
  endif()
  if(EXISTS ${MRA_ONNXRUNTIME_INCLUDE}/onnxruntime_c_api.h)
    file(STRINGS ${MRA_ONNXRUNTIME_INCLUDE}/onnxruntime_c_api.h mra_api REGEX "^#define ORT_API_VERSION [0-9]+")
    string(REGEX MATCH "[0-9]+" mra_api "${mra_api}")
    if("${mra_api}" STREQUAL "" OR mra_api LESS 21)
      message(FATAL_ERROR "${MRA_ONNXRUNTIME_INCLUDE} has the headers of ONNX Runtime 1.${mra_api}; 1.21 or newer is needed. Run "
        "`mra-export build onnxruntime`, which fetches them, or set -DMRA_ONNXRUNTIME_INCLUDE=DIR.")
    endif()
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
    message(FATAL_ERROR "NvInferRuntime.h was not found. Run `mra-export build tensorrt`, which fetches it, install libnvinfer-headers-dev, "
      "or set -DMRA_TENSORRT_INCLUDE=DIR.")
  endif()
endmacro()

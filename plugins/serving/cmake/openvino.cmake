# libmra_serving_openvino.so: the backend for OpenVINO's files, loaded by libmra_serving when it opens one. It runs with the release
# that it is built with. OpenVINO is found by CMake, or in the package openvino of the Python on PATH.
find_package(OpenVINO QUIET COMPONENTS Runtime)
if(NOT OpenVINO_FOUND)
  execute_process(COMMAND python3 -c "import importlib.util, pathlib; \
print(pathlib.Path(importlib.util.find_spec('openvino').origin).parent / 'cmake', end='')"
    OUTPUT_VARIABLE mra_openvino_wheel ERROR_QUIET)
  if(mra_openvino_wheel)
    find_package(OpenVINO QUIET COMPONENTS Runtime PATHS ${mra_openvino_wheel} NO_DEFAULT_PATH)
  endif()
endif()
if(NOT OpenVINO_FOUND)
  if(MRA_SERVING_OPENVINO STREQUAL "AUTO")
    message(STATUS "OpenVINO: not found, so its backend is not built")
    return()
  endif()
  message(FATAL_ERROR "OpenVINO was not found. Run `pip install openvino` in the environment that is active, or set "
    "-DOpenVINO_DIR=DIR of OpenVINOConfig.cmake.")
endif()
message(STATUS "OpenVINO: ${OpenVINO_VERSION}, ${OpenVINO_DIR}")

add_library(mra_serving_openvino MODULE src/openvino_backend.cc)
set_target_properties(mra_serving_openvino PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
target_include_directories(mra_serving_openvino PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_link_libraries(mra_serving_openvino PRIVATE openvino::runtime)
target_link_options(mra_serving_openvino PRIVATE -Wl,--no-undefined)
install(TARGETS mra_serving_openvino LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

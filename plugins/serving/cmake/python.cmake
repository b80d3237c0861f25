# libmra_serving_python.so: Hugging Face's tokenizers in Python, for tokenizers of which a bundle has no tables; loaded by libmra_serving
# where it is asked for. It runs with the release of Python that it is built with, by default the one that is active.
find_package(Python3 QUIET COMPONENTS Interpreter Development.Embed)
if(NOT Python3_Development.Embed_FOUND)
  if(MRA_SERVING_PYTHON STREQUAL "AUTO")
    message(STATUS "Python: its headers were not found, so the library that hosts it is not built")
    return()
  endif()
  message(FATAL_ERROR "Python's headers were not found. Run `apt-get install libpython3-dev`, or set -DPython3_ROOT_DIR=DIR.")
endif()
execute_process(COMMAND ${Python3_EXECUTABLE} -c "import sys, sysconfig; print(sys.base_prefix, sysconfig.get_path('platlib'), sep=';', end='')"
  OUTPUT_VARIABLE mra_python_places COMMAND_ERROR_IS_FATAL ANY)
list(GET mra_python_places 0 mra_python_home)
list(GET mra_python_places 1 mra_python_site)
message(STATUS "Python: ${Python3_VERSION}, ${Python3_LIBRARIES}, packages in ${mra_python_site}")

add_library(mra_serving_python MODULE src/python_text.cc)
set_target_properties(mra_serving_python PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
target_compile_definitions(mra_serving_python PRIVATE
  MRA_SERVING_PYTHON_HOME="${mra_python_home}" MRA_SERVING_PYTHON_SITE_DEFAULT="${mra_python_site}")
target_include_directories(mra_serving_python PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_link_libraries(mra_serving_python PRIVATE Python3::Python ${CMAKE_DL_LIBS})
target_link_options(mra_serving_python PRIVATE -Wl,--no-undefined)
install(TARGETS mra_serving_python LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

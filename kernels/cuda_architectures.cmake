# The GPU architectures that the kernels are compiled for where none is named, in CMake's form.
#
# Machine code for each generation. PTX of the newest for what comes after it, and of the lowest for all that lies between: of 11.0, and
# of a 10.x that runs no code for 10.0, there is none.
function(mra_cuda_architectures nvcc_version result)
  if(nvcc_version VERSION_GREATER_EQUAL 12.8)
    set(${result} 80 86-real 89-real 90-real 100-real 120 PARENT_SCOPE)
  else()
    set(${result} 80 86-real 89-real 90 PARENT_SCOPE)
  endif()
endfunction()

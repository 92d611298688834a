# CNNBENCH_PYTHON: the Python that has the controller; script/setup.sh makes the default one when it is not there yet.
set(default_python "${CMAKE_SOURCE_DIR}/.venv/bin/python")
set(CNNBENCH_PYTHON "${default_python}" CACHE FILEPATH "The Python that has the cnnbench package and what it needs")

if(NOT EXISTS "${CNNBENCH_PYTHON}")
  if(NOT CNNBENCH_PYTHON STREQUAL default_python)
    message(FATAL_ERROR "CNNBENCH_PYTHON=${CNNBENCH_PYTHON}: no such file; leave the option out (cmake -UCNNBENCH_PYTHON) "
                        "to have script/setup.sh make ${default_python}")
  endif()
  message(STATUS "Making ${default_python} with script/setup.sh")
  execute_process(
    COMMAND "${CMAKE_SOURCE_DIR}/script/setup.sh"
    RESULT_VARIABLE status
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output
    ECHO_OUTPUT_VARIABLE ECHO_ERROR_VARIABLE)
  if(NOT status EQUAL 0 OR NOT EXISTS "${CNNBENCH_PYTHON}")
    message(FATAL_ERROR "script/setup.sh did not make ${default_python} (exit ${status}):\n${output}")
  endif()
endif()

# Run `cnnbench <arguments>`; set `result` to what it prints, or stop the configuration with what it complains of.
function(run_cnnbench result)
  execute_process(
    COMMAND "${CNNBENCH_PYTHON}" -I -m cnnbench ${ARGN}
    RESULT_VARIABLE status
    OUTPUT_VARIABLE output
    ERROR_VARIABLE complaint
    OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " arguments)
    message(FATAL_ERROR "cnnbench ${arguments} (exit ${status}):\n${complaint}${output}")
  endif()
  set(${result} "${output}" PARENT_SCOPE)
endfunction()

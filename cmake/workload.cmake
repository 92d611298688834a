# add_workload() and add_testcase(): what a workload's CMakeLists.txt is written with.

# Declare the workload of the calling directory.
#
#   add_workload(CASES <mode>[_<case type>]...)
#
# Adds, for every precision of cmake/<PLATFORM>.cmake and every network of workload.yaml's `topologies`, the given cases
# in the given order, then their SGX twins where that file lists the precision in SGX_PRECISIONS too. Makes ctest.sh, list-kpi.sh and sweep.sh in the build
# directory.
function(add_workload)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "CASES")
  if(NOT arg_CASES OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "add_workload: needs CASES and nothing else, such as CASES throughput latency throughput_gated")
  endif()
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME workload)
  read_workload()
  if(BACKEND STREQUAL docker AND NOT has_images)
    message(STATUS "${workload}: declares no images in its workload.yaml, so it has no cases with BACKEND=docker")
    return()
  endif()
  set(declaration "${CMAKE_CURRENT_SOURCE_DIR}/cmake/${PLATFORM}.cmake")
  if(NOT EXISTS "${declaration}")
    file(GLOB declared RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}/cmake" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/*.cmake")
    list(TRANSFORM declared REPLACE "\\.cmake$" "")
    list(JOIN declared ", " declared)
    message(FATAL_ERROR "${workload}: not available on PLATFORM=${PLATFORM}, there is no ${declaration}; it has ${declared}")
  endif()
  include("${declaration}")

  add_backend_target(${workload})
  foreach(precision IN LISTS PRECISIONS)
    foreach(network IN LISTS topologies)
      foreach(case IN LISTS arg_CASES)
        add_testcase(SLUG ${slug} FUNCTION ${function} CASE ${case} PRECISION ${precision} TOPOLOGY ${network})
      endforeach()
    endforeach()
    if(topologies STREQUAL "")
      foreach(case IN LISTS arg_CASES)
        add_testcase(SLUG ${slug} FUNCTION ${function} CASE ${case} PRECISION ${precision})
      endforeach()
    endif()
    if(precision IN_LIST SGX_PRECISIONS)
      foreach(case IN LISTS arg_CASES)
        add_testcase(SLUG ${slug} FUNCTION ${function} CASE ${case} PRECISION ${precision} SGX)
      endforeach()
    endif()
  endforeach()
  add_script(ctest.sh)
  add_script(list-kpi.sh)
  add_script(sweep.sh)
  file(CREATE_LINK "${CMAKE_SOURCE_DIR}/kpi.sh" "${CMAKE_CURRENT_BINARY_DIR}/kpi.sh" SYMBOLIC)
endfunction()

# Add one test case, named test_<slug>_[sgx_]<function>_<mode>_<precision>[_<topology>][_<case type>].
#
#   add_testcase(SLUG <slug> FUNCTION <function> CASE <mode>[_<case type>] PRECISION <precision> [TOPOLOGY <topology>]
#                [SGX])
function(add_testcase)
  cmake_parse_arguments(PARSE_ARGV 0 arg "SGX" "SLUG;FUNCTION;CASE;PRECISION;TOPOLOGY" "")
  set(modes throughput latency accuracy)
  if(arg_FUNCTION STREQUAL serving)
    set(modes throughput latency capacity accuracy)
  endif()
  list(JOIN modes "|" alternatives)
  if(NOT arg_CASE MATCHES "^(${alternatives})(_(gated|pkm))?$")
    list(JOIN modes ", " known)
    message(FATAL_ERROR "add_testcase: CASE ${arg_CASE}: must be one of ${known}, with or without _gated or _pkm")
  endif()
  set(labels ${CMAKE_MATCH_1} ${arg_PRECISION} ${CMAKE_MATCH_3} ${PLATFORM} ${arg_TOPOLOGY})
  set(name "${arg_FUNCTION}_${CMAKE_MATCH_1}_${arg_PRECISION}")
  if(arg_TOPOLOGY)
    string(APPEND name "_${arg_TOPOLOGY}")
  endif()
  string(APPEND name "${CMAKE_MATCH_2}")
  if(arg_SGX)
    list(APPEND labels sgx)
    string(PREPEND name "sgx_")
  endif()
  string(PREPEND name "test_${arg_SLUG}_")

  math(EXPR ctest_timeout "${RUN_TIMEOUT} + ${PULL_TIMEOUT} + 60")
  add_test(
    NAME ${name}
    COMMAND "${CMAKE_SOURCE_DIR}/validate.sh" --backend ${BACKEND} --workload "${CMAKE_CURRENT_SOURCE_DIR}"
            --case ${name} --logs-root "${CMAKE_CURRENT_BINARY_DIR}" --timeout ${RUN_TIMEOUT} ${BACKEND_RUN_OPTIONS}
    WORKING_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}")
  set(environment "CNNBENCH_PYTHON=${CNNBENCH_PYTHON}" "PLATFORM=${PLATFORM}")
  if(CNNBENCH_PEAK)
    list(APPEND environment "CNNBENCH_PEAK=${CNNBENCH_PEAK}")
  endif()
  set_tests_properties(
    ${name}
    PROPERTIES
      ENVIRONMENT "${environment}"
      LABELS "${labels}"
      RESOURCE_LOCK cpu # a case uses all cores unless told otherwise
      SKIP_RETURN_CODE 77
      # Later than the case ends itself, with a reason: ctest before 3.27 kills it at once, a newer one as it says here.
      TIMEOUT ${ctest_timeout}
      TIMEOUT_SIGNAL_NAME SIGTERM
      TIMEOUT_SIGNAL_GRACE_PERIOD 10)
endfunction()

# Set `slug`, `function`, `topologies` and `has_images` to what the calling directory's workload.yaml says, and configure anew when
# that changes.
function(read_workload)
  set(file "${CMAKE_CURRENT_SOURCE_DIR}/workload.yaml")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
  file(STRINGS "${file}" line REGEX "^slug:")
  if(NOT line MATCHES "^slug: *([a-z0-9_]+) *$")
    message(FATAL_ERROR "${file}: needs one line `slug: name` of lower-case letters, digits and _")
  endif()
  set(slug ${CMAKE_MATCH_1} PARENT_SCOPE)
  set(function inference PARENT_SCOPE)
  file(STRINGS "${file}" line REGEX "^function:")
  if(line MATCHES "^function: *(inference|serving) *$")
    set(function ${CMAKE_MATCH_1} PARENT_SCOPE)
  elseif(line)
    message(FATAL_ERROR "${file}: `function` must be inference or serving")
  endif()
  file(STRINGS "${file}" line REGEX "^topologies:")
  if(line AND NOT line MATCHES "^topologies: \\[([a-z0-9_, ]+)\\]$")
    message(FATAL_ERROR "${file}: `topologies` must be one line, such as topologies: [resnet18, resnet50]")
  endif()
  string(REPLACE ", " ";" names "${CMAKE_MATCH_1}")
  if(NOT line)
    set(names "")
  endif()
  set(topologies "${names}" PARENT_SCOPE)
  file(STRINGS "${file}" line REGEX "^images:")
  string(COMPARE NOTEQUAL "${line}" "" found)
  set(has_images ${found} PARENT_SCOPE)
endfunction()

# Make a script of the build directory from cmake/<name>.in; the paths arrive in it quoted for the shell.
function(add_script name)
  set(quoted_BACKEND_CTEST_OPTIONS "")
  foreach(word IN LISTS BACKEND_CTEST_OPTIONS)
    string(REPLACE "'" "'\\''" escaped "${word}")
    string(APPEND quoted_BACKEND_CTEST_OPTIONS " '${escaped}'")
  endforeach()
  foreach(path CNNBENCH_PYTHON CNNBENCH_PEAK CMAKE_CTEST_COMMAND CMAKE_CURRENT_SOURCE_DIR CMAKE_CURRENT_BINARY_DIR)
    string(REPLACE "'" "'\\''" escaped "${${path}}")
    set(quoted_${path} "'${escaped}'")
  endforeach()
  configure_file("${CMAKE_SOURCE_DIR}/cmake/${name}.in" ${name} @ONLY
                 FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
endfunction()

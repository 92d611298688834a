# CNNBENCH_PEAK: the program that measures what utilization is a share of, made from native/peak.c while configuring, as
# nothing else needs a build. Without a C compiler all cases still run, and say that utilization was not measured.
find_program(PEAK_COMPILER NAMES $ENV{CC} cc gcc clang DOC "The C compiler for native/peak.c")
set(source "${CMAKE_SOURCE_DIR}/native/peak.c")
set(program "${CMAKE_BINARY_DIR}/cnnbench-peak")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")

if("${source}" IS_NEWER_THAN "${program}")
  file(REMOVE "${program}") # one of older sources must not stay behind
  set(status "no compiler")
  set(complaint)
  if(PEAK_COMPILER)
    execute_process(
      COMMAND "${PEAK_COMPILER}" -std=c11 -O2 -pthread -o "${program}" "${source}"
      RESULT_VARIABLE status
      OUTPUT_VARIABLE complaint
      ERROR_VARIABLE complaint)
  endif()
endif()
set(runs 0)
if(EXISTS "${program}")
  execute_process(COMMAND "${program}" --help RESULT_VARIABLE runs OUTPUT_QUIET ERROR_QUIET) # 2, as it has no such option
endif()
if(runs EQUAL 2)
  set(CNNBENCH_PEAK "${program}")
  message(STATUS "Utilization: measured with ${program}")
elseif(EXISTS "${program}")
  set(CNNBENCH_PEAK)
  message(STATUS "Utilization: left out, as ${program} cannot be run (${runs}); where its file system is mounted noexec, "
                 "configure in a directory from which programs may run (cmake -B)")
else()
  set(CNNBENCH_PEAK)
  message(STATUS "Utilization: left out, as native/peak.c could not be compiled; install gcc 11 or clang 12 or later "
                 "(on Debian and Ubuntu: apt-get install gcc libc6-dev) and configure anew (${PEAK_COMPILER}: ${status}):\n"
                 "${complaint}")
endif()

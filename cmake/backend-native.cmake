# The native backend: instances are processes on this machine, so there is nothing for `make` to build.
include(peak)
set(BACKEND_RUN_OPTIONS)
set(BACKEND_CTEST_OPTIONS)

# Add what `make` builds for a workload.
function(add_backend_target workload)
  add_custom_target(${workload} ALL)
endfunction()

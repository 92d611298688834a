# PLATFORM: the code, out of workload/platforms, whose test cases are made; by default the one of this machine.
set(PLATFORM "" CACHE STRING "Platform code, see workload/platforms; empty: the one of this machine")

set(requested "${PLATFORM}")
unset(PLATFORM CACHE) # a refused name must not stay behind for the next configuration
run_cnnbench(platform platform ${requested})
set(PLATFORM "${platform}" CACHE STRING "Platform code, see workload/platforms; empty: the one of this machine" FORCE)
message(STATUS "Platform: ${PLATFORM}")

# BACKEND: where test cases run; cmake/backend-<name>.cmake says how.
set(BACKEND native CACHE STRING "Where test cases run: the name of a cmake/backend-<name>.cmake")

if(NOT EXISTS "${CMAKE_CURRENT_LIST_DIR}/backend-${BACKEND}.cmake")
  file(GLOB backends RELATIVE "${CMAKE_CURRENT_LIST_DIR}" "${CMAKE_CURRENT_LIST_DIR}/backend-*.cmake")
  list(TRANSFORM backends REPLACE "^backend-(.*)\\.cmake$" "\\1")
  list(JOIN backends ", " backends)
  set(refused "${BACKEND}")
  unset(BACKEND CACHE)
  message(FATAL_ERROR "BACKEND=${refused}: must be one of ${backends}")
endif()
include(backend-${BACKEND})
message(STATUS "Backend: ${BACKEND}")

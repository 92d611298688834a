# The docker backend: `make` builds each workload's images, and its cases run in containers of them.
set(CONTAINER_CLI docker CACHE STRING "The container engine's command line: docker, podman, or with options of its own")
set(REGISTRY "" CACHE STRING "What comes before the images' names, such as host:5000; `make push` pushes there")
set(RELEASE latest CACHE STRING "The images' tag")
set(BASE_IMAGE "" CACHE STRING "What the images are made from; empty: the public one in Dockerfile.2.benchmark")
set(DATASET_FROM embedded CACHE STRING "embedded: the drawn data set; local: ImageNet too, from dataset/; url: from its address")
set(MODELS "" CACHE STRING "Artefacts that the images have besides the embedded model, such as resnet50_v1")
set(BUILD_OPTIONS "" CACHE STRING "More options of the engine's build command, such as --no-cache or --network host")
set(GRAMINE none CACHE STRING "Version of Gramine's Debian package in the -sgx image, such as 1.7; none: without")
set(MORE_VARIANTS "" CACHE STRING "The builds that the images have besides itex and cpu, such as stock or zentf")
set(ENGINES "" CACHE STRING "The engines that the images have, separated by spaces; empty: all that its cases may run on")
set(DOCKER_OPTIONS "" CACHE STRING "More options of the engine's run command; the environment's DOCKER_OPTIONS come after")

set(engine_options "--container-cli=${CONTAINER_CLI}")
set(image_options ${engine_options} "--registry=${REGISTRY}" "--release=${RELEASE}")
set(build_options ${image_options} "--base-image=${BASE_IMAGE}" "--dataset-from=${DATASET_FROM}" "--models=${MODELS}"
    "--gramine=${GRAMINE}" "--more-variants=${MORE_VARIANTS}" "--engines=${ENGINES}")

# What `cnnbench case` and `cnnbench ctest` are told besides what every backend has.
set(BACKEND_RUN_OPTIONS ${image_options} --pull-timeout ${PULL_TIMEOUT} "--docker-options=${DOCKER_OPTIONS}")
set(BACKEND_CTEST_OPTIONS ${engine_options})

# Add what `make` builds for a workload: an image each, after those that it is made of; `make push` and `make bom`.
function(add_backend_target workload)
  set(image "${CNNBENCH_PYTHON}" -I -m cnnbench image)
  set(options --workload "${CMAKE_CURRENT_SOURCE_DIR}" ${build_options} "--build-options=${BUILD_OPTIONS}")
  run_cnnbench(lines image list ${options})
  string(REPLACE "\n" ";" lines "${lines}")
  add_custom_target(${workload} ALL)
  foreach(line IN LISTS lines)
    string(REPLACE " " ";" needs "${line}")
    list(POP_FRONT needs role)
    add_custom_target(
      ${workload}-${role}
      COMMAND ${image} build ${role} ${options} --log "${CMAKE_CURRENT_BINARY_DIR}/image-${role}.log"
      VERBATIM USES_TERMINAL)
    list(TRANSFORM needs PREPEND ${workload}-)
    add_dependencies(${workload} ${workload}-${role})
    if(needs)
      add_dependencies(${workload}-${role} ${needs})
    endif()
  endforeach()
  foreach(action push bom)
    add_custom_target(${workload}-${action} COMMAND ${image} ${action} ${options} VERBATIM)
    if(NOT TARGET ${action})
      add_custom_target(${action})
    endif()
    add_dependencies(${action} ${workload}-${action})
  endforeach()
endfunction()

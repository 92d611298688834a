#!/bin/sh
# Compile the sampler that lies beside this file: compile-sampler.sh LIBRARY [COMPILER]
set -eu
exec "${2:-cc}" -std=gnu11 -O2 -fPIC -shared -fvisibility=hidden -o "$1" "$(dirname "$0")/sampler.c" \
    -Wl,-z,defs,-z,now -ldl -lrt -lpthread

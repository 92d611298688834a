#!/usr/bin/env -S python3
"""Compile ResNet-50 ahead of time: `cnnbench compile` from a checkout."""

import sys

from inside import call

sys.exit(call("compile", *sys.argv[1:]))

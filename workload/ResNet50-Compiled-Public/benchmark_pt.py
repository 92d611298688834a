#!/usr/bin/env -S python3
"""Measure ResNet-50 in PyTorch's eager mode: batches 1, 2, 4 ... 256."""

import sys

from inside import call

sys.exit(call("benchmark-compiled", *sys.argv[1:], "--engines"))

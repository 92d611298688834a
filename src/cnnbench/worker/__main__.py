"""Let `python start.py cnnbench.worker SPEC.json` be one worker process."""

import sys

from cnnbench.worker.process import main

main(sys.argv[1:])

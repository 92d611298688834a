"""Let `python -m cnnbench.worker SPEC.json` be one worker process."""

import sys

from cnnbench.worker.process import main

main(sys.argv[1:])

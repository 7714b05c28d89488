"""The coordinator's process: `python -m fedfactory.coordinator HOME`."""

import logging
import os
import sys

from fedfactory.coordinator.daemon import main

code = main(sys.argv[1:])
logging.shutdown()
sys.stderr.flush()
os._exit(code)  # threads parked in open calls must neither delay nor abort the exit

"""`idle.py N`: N processes of Python that do nothing, this one among them. End its process group."""

import os
import signal
import sys

signal.signal(signal.SIGTERM, signal.SIG_DFL)
for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        break
else:
    print("ready", flush=True)
signal.pause()

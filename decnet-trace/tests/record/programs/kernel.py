"""Busy in the kernel: writes a megabyte to the same place of a file, over and over."""

import os
import tempfile
import time

data = bytes(1 << 20)
file = tempfile.TemporaryFile()


def store():
    os.pwrite(file.fileno(), data, 0)


print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    store()

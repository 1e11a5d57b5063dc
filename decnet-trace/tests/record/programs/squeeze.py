"""A thread that compresses, without the GIL for nearly all of it, while the main thread sleeps."""

import os
import threading
import time
import zlib


def squeeze(data):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        zlib.compress(data, 9)


threading.Thread(target=squeeze, args=(os.urandom(1 << 22),), daemon=True).start()
print("ready", flush=True)
time.sleep(60)

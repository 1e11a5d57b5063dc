"""Busy for a minute so many calls deep (first argument), beside so many threads that sleep (second)."""

import sys
import threading
import time


def dive(depth):
    if depth > 1:
        return dive(depth - 1)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass
    return None


depth = int(sys.argv[1])
sys.setrecursionlimit(depth + 1000)
for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 0):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("ready", flush=True)
# The module and this call are two frames; the innermost is the loop.
dive(depth - 1)

"""Busy 500 calls deep."""

import sys
import time


def dive(depth):
    if depth > 1:
        dive(depth - 1)
    else:
        spin()


def spin():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


sys.setrecursionlimit(2000)
print("ready", flush=True)
dive(500)

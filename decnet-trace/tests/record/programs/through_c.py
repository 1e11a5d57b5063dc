"""Busy behind so many calls that all go through C: by turns sorted() and functools.partial."""

import functools
import sys
import time


def dive(depth):
    if depth == 1:
        spin()
    elif depth % 2:
        functools.partial(dive, depth - 1)()
    else:
        sorted([depth - 1], key=dive)


def spin():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


sys.setrecursionlimit(2000)
print("ready", flush=True)
dive(int(sys.argv[1]))

"""Busy in a function that a library calls back, for so many seconds; loads the library when told to."""

import ctypes
import sys
import time


def callback():
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        sum(range(500))


def call(library, until):
    function = ctypes.CFUNCTYPE(None)(callback)
    while time.monotonic() < until:
        library.c_outer(function, 3)


print("ready", flush=True)
sys.stdin.readline()
call(ctypes.CDLL(sys.argv[1]), time.monotonic() + float(sys.argv[2]))

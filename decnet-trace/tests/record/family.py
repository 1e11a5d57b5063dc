"""A busy process with a busy fork and a busy process that it executes."""

import os
import subprocess
import sys
import time


def spin(name):
    end = time.monotonic() + 4
    while time.monotonic() < end:
        pass


def parent():
    spin("parent")


def forked():
    spin("forked")


def executed():
    spin("executed")


if len(sys.argv) > 1:
    executed()
    sys.exit()
# Children are followed from when they are made: the recording begins before.
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if child == 0:
    forked()
    os._exit(0)
other = subprocess.Popen([sys.executable, __file__, "executed"])
parent()
os.waitpid(child, 0)
other.wait()

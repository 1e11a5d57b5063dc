"""A busy process with a busy fork and a busy process that it executes."""

import os
import subprocess
import sys
import time


def spin():
    used = time.thread_time()
    while time.thread_time() < used + 1.0:
        pass


def parent():
    spin()


def forked():
    spin()


def executed():
    spin()


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

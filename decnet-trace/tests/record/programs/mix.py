"""70 % of the CPU time in one function, 30 % in another, for so many seconds."""

import sys
import time


def heavy(until):
    while time.thread_time() < until:
        sum(range(500))


def light(until):
    while time.thread_time() < until:
        sum(range(500))


def main(seconds):
    print("ready", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        heavy(time.thread_time() + 0.007)
        light(time.thread_time() + 0.003)
    print("used", time.process_time(), flush=True)


main(float(sys.argv[1]))
sys.exit(int(sys.argv[2]) if len(sys.argv) > 2 else 0)

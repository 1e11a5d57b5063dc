"""Runs one function after another for so many seconds each, all of code at the same address, with lines alike."""

import sys
import time

SOURCE = """def {0}():
    end = time.monotonic() + {1}
    while time.monotonic() < end:
        pass
"""


def make(number, seconds):
    # Not a name that the parser has seen before, and as long as all others.
    name = "w%06d" % number
    scope = {"time": time}
    exec(compile(SOURCE.format(name, seconds), name + ".py", "exec"), scope)
    return scope[name]


def main(count, seconds):
    print("ready", flush=True)
    # What is made again and again comes to the same place.
    for number in range(50):
        wanted = id(make(number, 0).__code__)
    sys.stdin.readline()
    for number in range(count):
        function = make(number, seconds)
        while id(function.__code__) != wanted:
            function = None
            function = make(number, seconds)
        function()
        function = None
    print("done", flush=True)


main(int(sys.argv[1]), float(sys.argv[2]))

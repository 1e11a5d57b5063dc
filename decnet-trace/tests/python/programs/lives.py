"""Forks, starts and ends threads, runs sub-interpreters, and makes code that dies. Prints what it is at."""
import json
import os
import sys
import threading
import time
import types


def in_child():
    print(json.dumps({"pid": os.getpid()}), flush=True)
    time.sleep(100000)


def fork():
    threading.Thread(target=time.sleep, args=(100000,), daemon=True).start()
    if os.fork() == 0:
        in_child()
    sys.stdin.read()


def churn():
    """Threads come and go all the time."""
    def short():
        time.sleep(0.0005)

    print("null", flush=True)
    while True:
        threads = [threading.Thread(target=short) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


SUB = """
import os, time
def in_sub_interpreter():
    os.write(%d, b"x")
    time.sleep(100000)
in_sub_interpreter()
"""


def sub():
    try:
        import _interpreters as interpreters
    except ImportError:
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            print("false", flush=True)
            return
    other = interpreters.create()
    run = getattr(interpreters, "run_string", None) or interpreters.exec
    up, tell = os.pipe()
    threading.Thread(target=run, args=(other, SUB % tell), daemon=True).start()
    os.read(up, 1)
    print("true", flush=True)
    sys.stdin.read()


def reuse():
    """Code objects die, and others take their addresses."""
    print("null", flush=True)
    scope = {"time": time}
    number = 0
    while True:
        number += 1
        name = "f%d" % number
        exec(compile("\n" * (number % 50) + "def %s():\n    time.sleep(0.001)\n%s()" % (name, name), name, "exec"), scope)
        del scope[name]


def base():
    time.sleep(0.001)


def alike():
    """The same, and their names take each other's addresses; all else of them is the same."""
    print("null", flush=True)
    number = 0
    while True:
        number += 1
        name = "f%09d" % number
        names = {"co_name": name}
        if hasattr(base.__code__, "co_qualname"):
            names["co_qualname"] = name
        code = base.__code__.replace(**names)
        types.FunctionType(code, globals())()
        del name, names, code


{"fork": fork, "churn": churn, "sub": sub, "reuse": reuse, "alike": alike}[sys.argv[1]]()

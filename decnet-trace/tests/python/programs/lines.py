"""Compiles modules of the standard library and prints, for each code object, what it says of itself."""
import dis
import json
import os
import sys
import sysconfig
import types

FOLDER = sysconfig.get_paths()["stdlib"]
# Long functions, decorators, comprehensions, coroutines, pattern matching, big literals.
MODULES = [
    "argparse", "ast", "asyncio/base_events", "asyncio/tasks", "configparser", "dataclasses", "datetime",
    "email/_header_value_parser", "enum", "functools", "inspect", "json/decoder", "re", "ssl", "tarfile",
    "threading", "typing", "unittest/mock",
]
kept = []


def lines(code):
    """The line of the instruction at each offset; 0 for none."""
    if hasattr(code, "co_lines"):
        for start, end, line in code.co_lines():
            for offset in range(start, end, 2):
                yield offset, line or 0
        return
    starts = dict(dis.findlinestarts(code))
    line = code.co_firstlineno
    for offset in range(0, len(code.co_code), 2):
        line = starts.get(offset, line)
        yield offset, line


def tell(code):
    kept.append(code)
    print(json.dumps({
        "address": id(code),
        "instructions": id(code) + type(code).__basicsize__,
        "name": getattr(code, "co_qualname", code.co_name),
        "file": code.co_filename,
        "first": code.co_firstlineno,
        "lines": list(lines(code)),
    }))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            tell(constant)


for module in MODULES:
    path = os.path.join(FOLDER, module + ".py")
    if os.path.exists(path):
        with open(path, "rb") as source:
            tell(compile(source.read(), path, "exec"))
# Lines thousands apart, each way, and a file whose name is not ASCII.
far = "x = (1,\n" + "\n" * 5000 + "y(),\n" + "\n" * 300 + "z())\n" + "def f(a, b): return a\\\n" + "\\\n" * 700 + "+ b\n"
tell(compile(far, "/tmp/größe λ 🦀.py", "exec"))
print("null", flush=True)
sys.stdin.read()

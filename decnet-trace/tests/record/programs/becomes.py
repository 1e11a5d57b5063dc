"""Busy until it is told a command; then executes it, or starts it and waits for it."""

import json
import os
import select
import subprocess
import sys


def before():
    while not select.select([sys.stdin], [], [], 0)[0]:
        sum(range(1000))


print("ready", flush=True)
before()
how, command = json.loads(sys.stdin.readline())
if how == "exec":
    os.execv(command[0], command)
subprocess.run(command)

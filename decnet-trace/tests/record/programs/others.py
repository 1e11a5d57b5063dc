"""Three threads: one works in another interpreter of the process, one in the main one, one without the GIL.

Says which thread is which; "none" where sub-interpreters cannot be had.
"""

import json
import os
import sys
import threading
import time
import zlib

OTHER = """
import time
def work_in_other():
    while time.monotonic() < end:
        # Until 3.11, who waits for the GIL cannot ask for it in another interpreter.
        time.sleep(0.0001)
        turn = time.monotonic() + 0.005
        while time.monotonic() < turn:
            pass
end = time.monotonic() + 600
work_in_other()
"""

tids = {}


def run_other(run, interpreter):
    tids["other"] = threading.get_native_id()
    run(interpreter, OTHER)


def squeeze(data):
    tids["squeeze"] = threading.get_native_id()
    while True:
        zlib.compress(data, 9)


def work_in_main():
    while True:
        time.sleep(0.0001)
        turn = time.monotonic() + 0.005
        while time.monotonic() < turn:
            pass


print("ready", flush=True)
try:
    import _interpreters as interpreters
except ImportError:
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        print("none", flush=True)
        sys.exit()
run = getattr(interpreters, "run_string", None) or interpreters.exec
# Its thread state is made by this thread, which never runs it.
threading.Thread(target=run_other, args=(run, interpreters.create()), daemon=True).start()
threading.Thread(target=squeeze, args=(os.urandom(1 << 22),), daemon=True).start()
while len(tids) < 2:
    time.sleep(0.01)
time.sleep(0.3)
tids["main"] = threading.get_native_id()
print(json.dumps(tids), flush=True)
work_in_main()

"""A thread that sleeps in C and keeps the GIL. Says so just before; "false" where there is no ctypes."""
import sys
import threading
import time

try:
    import ctypes
except ImportError:
    print("false", flush=True)
    sys.exit()


up = threading.Lock()
up.acquire()


def waits():
    up.release()
    time.sleep(100000)


def keeps_the_gil():
    library = ctypes.PyDLL(None)
    print("true", flush=True)
    library.sleep(100000)


threading.Thread(target=waits, daemon=True).start()
up.acquire()
keeps_the_gil()

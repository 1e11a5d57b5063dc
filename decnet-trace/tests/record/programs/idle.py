"""Threads that run, sleep, wait for a lock, and do both in turns; says at the end for how long each did."""

import sys
import threading
import time

done = threading.Event()
taken = threading.Lock()
taken.acquire()
times = {}


def spin():
    while not done.is_set():
        sum(range(500))


def sleeps():
    while not done.is_set():
        time.sleep(0.2)


def waits_for_a_lock():
    taken.acquire()


def work(until):
    while time.monotonic() < until:
        pass


def nap(seconds):
    time.sleep(seconds)


def turns():
    while not done.is_set():
        start = time.monotonic()
        work(start + 0.012)
        middle = time.monotonic()
        nap(0.008)
        end = time.monotonic()
        times["work"] = times.get("work", 0) + middle - start
        times["nap"] = times.get("nap", 0) + end - middle


for target in [sleeps, waits_for_a_lock, turns] + [spin] * ("spin" in sys.argv):
    threading.Thread(target=target, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
done.set()
print(times["work"], times["nap"], flush=True)

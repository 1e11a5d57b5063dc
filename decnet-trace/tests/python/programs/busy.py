"""Threads that call, recurse and generate without pause."""
import sys
import threading


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def numbers(n):
    for i in range(n):
        yield i


def work():
    while True:
        fibonacci(8)
        sum(x * x for x in numbers(50))
        sorted(range(20), key=lambda x: -x)


for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
print("{}", flush=True)
sys.stdin.read()

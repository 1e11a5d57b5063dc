// Busy at the end of a chain of calls that is always the same.
#include <stdio.h>
#include <time.h>

static volatile unsigned long sink;

__attribute__((noinline)) void innermost(void) {
    time_t end = time(NULL) + 60;
    while (time(NULL) < end)
        for (int i = 0; i < 1000000; i++)
            sink += i;
    sink++;
}

__attribute__((noinline)) void middle(void) {
    innermost();
    sink++;
}

__attribute__((noinline)) void outermost(int depth) {
    if (depth)
        outermost(depth - 1);
    else
        middle();
    sink++;
}

int main(void) {
    puts("ready");
    fflush(stdout);
    outermost(20);
    return 0;
}

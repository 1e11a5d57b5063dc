// Calls back through a chain of functions that is always the same.
static volatile unsigned long sink;

__attribute__((noinline)) void c_inner(void (*call)(void)) {
    unsigned char room[72];
    for (unsigned i = 0; i < sizeof room; i++)
        room[i] = (unsigned char)(sink + i);
    call();
    sink += room[sink % sizeof room];
}

__attribute__((noinline)) void c_outer(void (*call)(void), int depth) {
    if (depth)
        c_outer(call, depth - 1);
    else
        c_inner(call);
    sink++;
}

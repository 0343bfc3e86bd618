/* What Cython cannot express: a precise and a coarse monotonic clock for each platform, the length of an integer in bits,
   prefetching, a read of what another thread may be writing, the hash of an object without a call if it is known, and
   whether there is a GIL. */
#ifndef ACGSPERF_PLATFORM_H
#define ACGSPERF_PLATFORM_H

#include <Python.h>
#include <stdint.h>

/* Reads an integer that another thread may be writing. */
#if defined(_MSC_VER)
#define acgsperf_read_shared(place) (*(volatile unsigned int *)(place))
#else
#define acgsperf_read_shared(place) __atomic_load_n((place), __ATOMIC_RELAXED)
#endif

#if defined(_MSC_VER)
#include <intrin.h>
#include <windows.h>

static inline int acgsperf_bit_length(uint64_t value)
{
    unsigned long bit;
    return _BitScanReverse64(&bit, value) ? (int)bit + 1 : 0;
}

/* A hint: it may get any address. */
#if defined(_M_X64) || defined(_M_IX86)
#define acgsperf_prefetch(address) _mm_prefetch((const char *)(address), _MM_HINT_T0)
#else
#define acgsperf_prefetch(address) __prefetch(address)
#endif

static inline int64_t acgsperf_monotonic_ns(void)
{
    LARGE_INTEGER ticks, frequency;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&frequency);
    return ticks.QuadPart / frequency.QuadPart * 1000000000
           + ticks.QuadPart % frequency.QuadPart * 1000000000 / frequency.QuadPart;
}
#else
#include <time.h>

/* A hint: it may get any address. */
#define acgsperf_prefetch(address) __builtin_prefetch(address)

static inline int acgsperf_bit_length(uint64_t value)
{
    return value ? 64 - __builtin_clzll(value) : 0;
}

static inline int64_t acgsperf_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
#endif

/* The coarse clock is the time of the kernel's last tick. It costs a third of the precise one, is never ahead of it, and
   never later than one tick (10 ms at the slowest tick rate in use, doubled here for safety). */
#ifdef CLOCK_MONOTONIC_COARSE
#define ACGSPERF_COARSE_LAG_NS 20000000

static inline int64_t acgsperf_coarse_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
#else
#define ACGSPERF_COARSE_LAG_NS 0
#define acgsperf_coarse_ns acgsperf_monotonic_ns
#endif

#ifdef Py_GIL_DISABLED
#define ACGSPERF_FREE_THREADED 1
#else
#define ACGSPERF_FREE_THREADED 0
#endif

/* A str remembers its hash; -1 until it was asked for. */
static inline Py_hash_t acgsperf_hash(PyObject *key)
{
    if (PyUnicode_CheckExact(key)) {
        /* Without the GIL another thread may be writing it: one read, of one word. */
        Py_hash_t hash = *(volatile Py_hash_t *)&((PyASCIIObject *)key)->hash;
        if (hash != -1)
            return hash;
    }
    return PyObject_Hash(key);
}

#endif

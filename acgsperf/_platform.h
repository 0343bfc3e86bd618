/* What C offers differently on each platform: a monotonic clock, a cheap one, and the length of an integer in bits. */
#ifndef ACGSPERF_PLATFORM_H
#define ACGSPERF_PLATFORM_H

#include <stdint.h>

#if defined(_MSC_VER)
#include <intrin.h>
#include <windows.h>

static inline int acgsperf_bit_length(uint64_t value)
{
    unsigned long bit;
    return _BitScanReverse64(&bit, value) ? (int)bit + 1 : 0;
}

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

/* The coarse clock is what the kernel noted at its last tick: a third of the price, never ahead of the precise
   one, and behind it by no more than a tick (10 ms at the slowest tick rate in use, doubled here for safety). */
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

#endif

/* Threads that go through the phases of a step together.
 *
 * A phase is a number of pieces, which threads take as they come, and it ends when all pieces are done, not when all
 * threads are there: one that was held up, because its core is shared, leaves its work to the others and joins them in
 * the phase that they have reached by then. Results do not depend on who computed what. */

#pragma once

#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 1000 }; /* about 20 us: longer than most waits, shorter than a time slice */

/* What the threads of a team share. */
struct meeting {
    uint32_t phase;  /* what sleepers wait on to change */
    int sleeping;
    int64_t done;    /* pieces of the phase */
    uint64_t claims; /* the phase again, and how many of its pieces are taken, in the low half */
};

/* A thread's view of its team: the phase that it is in, and the pieces [first, end) that it has taken. */
struct team {
    struct meeting *meeting;
    int size; /* threads, if all come */
    uint32_t phase;
    int64_t first, end;
};

/* Take up to `at_once` of the phase's `count` pieces, those taken before being done; 0 when none are left. */
static inline int take(struct team *team, int64_t count, int64_t at_once) {
    struct meeting *meeting = team->meeting;
    int64_t finished = team->end - team->first;
    team->first = team->end = 0;
    if (finished && __atomic_add_fetch(&meeting->done, finished, __ATOMIC_ACQ_REL) == count) {
        uint32_t phase = team->phase + 1;
        meeting->done = 0;
        __atomic_store_n(&meeting->claims, (uint64_t)phase << 32, __ATOMIC_RELEASE);
        __atomic_store_n(&meeting->phase, phase, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&meeting->sleeping, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &meeting->phase, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
        return 0;
    }
    uint64_t claims = __atomic_load_n(&meeting->claims, __ATOMIC_ACQUIRE);
    do {
        if (claims >> 32 != team->phase || (int64_t)(uint32_t)claims >= count) return 0;
    } while (!__atomic_compare_exchange_n(&meeting->claims, &claims, claims + (uint64_t)at_once, 1, __ATOMIC_ACQ_REL,
                                          __ATOMIC_ACQUIRE));
    team->first = (uint32_t)claims;
    team->end = team->first + at_once < count ? team->first + at_once : count;
    return 1;
}

/* How many pieces to take at once: neighbours lie together in memory, and yet all threads end at about the same time. */
static inline int64_t stretch_of(const struct team *team, int64_t pieces) {
    int64_t stretch = pieces / (8 * team->size);
    return stretch > 1 ? stretch : 1;
}

/* For each of `count` pieces, at least one, by whichever thread takes it; then `meet`. */
#define EACH(piece, team, count)                                                                              \
    while (take(team, count, stretch_of(team, count)))                                                        \
        for (int64_t piece = (team)->first; piece < (team)->end; piece++)

/* Wait for the end of the phase: awake for a moment, then asleep, since the thread that is waited for may need this
 * very core. */
static void meet(struct team *team) {
    struct meeting *meeting = team->meeting;
    uint32_t phase = team->phase++;
    for (int spin = 0; spin < SPINS; spin++) {
        if (__atomic_load_n(&meeting->phase, __ATOMIC_ACQUIRE) != phase) return;
#if defined __x86_64__
        __builtin_ia32_pause();
#elif defined __aarch64__
        __asm__ volatile("isb");
#endif
    }
    __atomic_add_fetch(&meeting->sleeping, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&meeting->phase, __ATOMIC_SEQ_CST) == phase)
        syscall(SYS_futex, &meeting->phase, FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
    __atomic_sub_fetch(&meeting->sleeping, 1, __ATOMIC_SEQ_CST);
}

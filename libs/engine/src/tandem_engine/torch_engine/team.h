/* Threads that go through the phases of a step together.
 *
 * Each phase is a count of pieces, which the threads claim one after another, so that one that was held up (cores are
 * shared) leaves more to the others. Results do not depend on who computed what. */

#pragma once

#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 1000 }; /* about 20 us: longer than a phase's ends lie apart, shorter than a time slice */

struct team {
    int size, arrived, phase, sleeping;
    int64_t claimed;
};

/* The first of `count` pieces that nobody has taken in this phase, for whoever asks. */
static inline int64_t claim(struct team *team, int64_t count) {
    return __atomic_fetch_add(&team->claimed, count, __ATOMIC_RELAXED);
}

/* How many pieces at a time: neighbours lie together in memory, and yet all threads end at about the same time. */
static inline int64_t stretch_of(const struct team *team, int64_t pieces) {
    int64_t stretch = pieces / (8 * team->size);
    return stretch > 1 ? stretch : 1;
}

/* For each of `count` pieces, by whichever thread claims it. */
#define EACH(piece, team, count)                                                                              \
    for (int64_t stretch_ = stretch_of(team, count), first_; (first_ = claim(team, stretch_)) < (count);)     \
        for (int64_t piece = first_; piece < (count) && piece < first_ + stretch_; piece++)

/* Wait until all threads have done their pieces of a phase: awake for a moment, then asleep, since the thread that is
 * waited for may need this very core. */
static void meet(struct team *team) {
    int phase = __atomic_load_n(&team->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
        team->arrived = 0;
        team->claimed = 0;
        __atomic_store_n(&team->phase, phase + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&team->sleeping, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
        return;
    }
    for (int spin = 0; spin < SPINS; spin++) {
        if (__atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) != phase) return;
#if defined __x86_64__
        __builtin_ia32_pause();
#elif defined __aarch64__
        __asm__ volatile("isb");
#endif
    }
    __atomic_add_fetch(&team->sleeping, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) == phase)
        syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
    __atomic_sub_fetch(&team->sleeping, 1, __ATOMIC_SEQ_CST);
}

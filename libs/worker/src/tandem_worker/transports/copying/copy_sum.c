/* Copies memory and sums it in the same pass: what the checksum needs is in registers anyway while it is copied.
 *
 * The sum is zlib's CRC-32, by folding (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
 * Instruction", Intel 2009), 64 bytes at a time. A message A B, A of 64 bytes, has the same remainder as A times
 * x^512 plus B; the product of each half of a lane with x^(512 +- 32) modulo the polynomial, in reflected bit order, is
 * that step. Four pages are walked through side by side: one after another the processor would wait for memory, as it
 * does not read ahead beyond a page. Their four remainders are then folded over the length of a page into one.
 *
 * The copy goes past the cache: it is not read again soon, and would have to be fetched before it is written.
 */

#if !defined(__AVX512F__) || !defined(__VPCLMULQDQ__)
#error "no instructions for it: the caller has another way"
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LINE = 64, PAGE = 4096 };

/* x^(n - 32) and x^(n + 32) modulo the polynomial, reflected, for n = 512 and n = 8 * PAGE. */
#define LINE_FACTORS 0x1c6e41596, 0x154442bd4
#define PAGE_FACTORS 0x1b3b1a484, 0x5ad8a92c

static uint32_t table[256];

__attribute__((constructor)) static void make_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t remainder = byte;
        for (int bit = 0; bit < 8; bit++)
            remainder = (remainder >> 1) ^ (remainder & 1 ? 0xEDB88320u : 0);
        table[byte] = remainder;
    }
}

static uint32_t sum_bytes(uint32_t remainder, const uint8_t *bytes, size_t count)
{
    while (count--)
        remainder = table[(remainder ^ *bytes++) & 255] ^ (remainder >> 8);
    return remainder;
}

static inline __m512i fold(__m512i sum, __m512i factors, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(sum, factors, 0x00), high = _mm512_clmulepi64_epi128(sum, factors, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* xor of three */
}

static inline __m512i copy_line(uint8_t *target, const uint8_t *source)
{
    __m512i line = _mm512_loadu_si512(source);
    _mm512_stream_si512((void *)target, line);
    return line;
}

/* Copies count bytes; returns the CRC-32 of bytes whose sum is before, followed by these. */
uint32_t copy_sum(uint8_t *target, const uint8_t *source, size_t count, uint32_t before)
{
    uint32_t remainder = ~before;
    size_t head = -(uintptr_t)target & (LINE - 1);
    if (count < head + LINE)
        head = count;
    memcpy(target, source, head);
    remainder = sum_bytes(remainder, source, head);
    target += head, source += head, count -= head;
    if (!count)
        return ~remainder;

    const __m512i by_line = _mm512_set4_epi64(LINE_FACTORS, LINE_FACTORS);
    const __m512i by_page = _mm512_set4_epi64(PAGE_FACTORS, PAGE_FACTORS);
    const __m512i zero = _mm512_setzero_si512();
    __m512i sum = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)remainder));
    sum = _mm512_xor_si512(sum, copy_line(target, source));
    target += LINE, source += LINE, count -= LINE;
    for (; count >= 4 * PAGE; target += 4 * PAGE, source += 4 * PAGE, count -= 4 * PAGE) {
        __m512i second = zero, third = zero, fourth = zero;
        for (size_t i = 0; i < PAGE; i += LINE) {
            sum = fold(sum, by_line, copy_line(target + i, source + i));
            second = fold(second, by_line, copy_line(target + PAGE + i, source + PAGE + i));
            third = fold(third, by_line, copy_line(target + 2 * PAGE + i, source + 2 * PAGE + i));
            fourth = fold(fourth, by_line, copy_line(target + 3 * PAGE + i, source + 3 * PAGE + i));
        }
        sum = fold(fold(fold(sum, by_page, second), by_page, third), by_page, fourth);
    }
    for (; count >= LINE; target += LINE, source += LINE, count -= LINE)
        sum = fold(sum, by_line, copy_line(target, source));
    _mm_sfence();

    uint8_t rest[LINE];
    _mm512_storeu_si512(rest, sum);
    memcpy(target, source, count);
    return ~sum_bytes(sum_bytes(0, rest, LINE), source, count);
}

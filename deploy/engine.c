/* An integer-only network in C99: no floating point, no allocation, no library.
 *
 * The compiler's own macros choose between two ways to the same integers, each with its table in
 * mlp_weights.h. Where an instruction multiplies bytes, LANES outputs at a time: DOT4 adds to each
 * 32-bit lane the products of its four bytes of codes (unsigned) and of weights (signed). Else, or
 * with -DMLP_PORTABLE, plain C and a table that takes about as many bits as the weights have.
 */
#include "mlp.h"

#if defined(MLP_PORTABLE) || !defined(__GNUC__) || defined(__ARM_BIG_ENDIAN)
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define LANES 16
#define SPLAT(word) _mm512_set1_epi32((int)(word))
#define DOT4 _mm512_dpbusd_epi32
typedef __m512i lanes;
#elif defined(__AVXVNNI__)
#include <immintrin.h>
#define LANES 8
#define SPLAT(word) _mm256_set1_epi32((int)(word))
#define DOT4 _mm256_dpbusd_avx_epi32
typedef __m256i lanes;
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define SPLAT(word) _mm256_set1_epi32((int)(word))
typedef __m256i lanes;
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define LANES 4
#define SPLAT vdupq_n_u32
typedef uint32x4_t lanes;
#define DOT4 dot4
static inline lanes dot4(lanes sums, lanes x, lanes w)
{   /* both unsigned: w + 128, and 128 * x off again */
    const uint8x16_t codes = vreinterpretq_u8_u32(x), sign = vdupq_n_u8(128);
    lanes offset = vdotq_u32(vdupq_n_u32(0), codes, sign);
    return vsubq_u32(vdotq_u32(sums, codes, veorq_u8(vreinterpretq_u8_u32(w), sign)), offset);
}
#endif
#include "mlp_weights.h"

#ifdef LANES
#include <string.h>

#ifndef DOT4                                    /* AVX2 adds pairs, saturated at 16 bits */
static inline lanes DOT4(lanes sums, lanes x, lanes w)
{
    const lanes ones = _mm256_set1_epi16(1);
#if MLP_WEIGHT_BITS < 8                         /* 2 * 255 * 63 < 2^15 */
    lanes pairs = _mm256_maddubs_epi16(x, w);
#else                                           /* 2 * 128 * 127 < 2^15: the highest bits apart */
    const lanes highest = _mm256_set1_epi8(-128);
    lanes pairs = _mm256_maddubs_epi16(_mm256_and_si256(x, highest), w);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
    pairs = _mm256_maddubs_epi16(_mm256_andnot_si256(highest, x), w);
#endif
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
}
#endif

/* Images at a time: the weights stay in the nearest cache. One of a network for which that is too
 * small anyway, so that a thread's stack is large enough. */
#define BLOCK (MLP_MAX_INPUTS + MLP_MAX_OUTPUTS + MLP_MAX_CODES < 8192 ? 8 : 1)
#define TILE 16                                 /* outputs that a convolution's tables fill up */
#define SLACK TILE                              /* bytes after a map, which words, tiles reach into */
#define SUMS(outputs) (((outputs) + 63) / 64 * 64)      /* as many as zeros fill the table up to */

/* Fours of codes that are not all 0, each as a word, its first code in the lowest byte: most pixels
 * are 0. row: where their weights begin, in vectors of lanes. */
struct fours {
    uint32_t count, word[MLP_MAX_INPUTS / 4 + 16], row[MLP_MAX_INPUTS / 4 + 16];
};

static void store(uint32_t *to, lanes values)
{
    memcpy(to, &values, sizeof values);
}

static void find_fours(struct fours *list, const uint8_t *x, uint32_t inputs, uint32_t vectors)
{
    uint32_t count = 0;
#if LANES == 16
    lanes row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    row = _mm512_mullo_epi32(row, SPLAT(vectors));
    for (uint32_t i = 0; i < inputs; i += 64) {
        uint64_t there = inputs - i < 64 ? (UINT64_C(1) << (inputs - i)) - 1 : UINT64_MAX;
        lanes word = _mm512_maskz_loadu_epi8(there, x + i);
        __mmask16 nonzero = _mm512_test_epi32_mask(word, word);
        store(list->word + count, _mm512_maskz_compress_epi32(nonzero, word));
        store(list->row + count, _mm512_maskz_compress_epi32(nonzero, row));
        count += (uint32_t)__builtin_popcount(nonzero);
        row = _mm512_add_epi32(row, SPLAT(16 * vectors));
    }
#else
    for (uint32_t i = 0, row = 0; i < inputs; i += 4, row += vectors) {
        uint32_t word = x[i], left = inputs - i;
        if (left >= 4)
            word |= (uint32_t)x[i + 1] << 8 | (uint32_t)x[i + 2] << 16 | (uint32_t)x[i + 3] << 24;
        else
            for (uint32_t k = 1; k < left; k++)
                word |= (uint32_t)x[i + k] << 8 * k;
        list->word[count] = word;
        list->row[count] = row;
        count += word != 0;                     /* no branch to mispredict */
    }
#endif
    list->count = count;
}

/* acc = x @ w + b modulo 2^32, images' codes being stride bytes apart; the true value lies in
 * (-2^24, 2^24). */
static void accumulate(const struct mlp_step *step, const uint8_t *x, uint32_t stride,
                       uint32_t images, uint32_t (*acc)[SUMS(MLP_MAX_OUTPUTS)])
{
    struct fours lists[BLOCK];
    const lanes *w = (const lanes *)step->w;
    const uint32_t vectors = SUMS(step->outputs) / LANES;
    for (uint32_t n = 0; n < images; n++)
        find_fours(&lists[n], x + n * stride, step->inputs, vectors);
    for (uint32_t o = 0; o < step->outputs; o += 4 * LANES, w += 4)
        for (uint32_t n = 0; n < images; n++) {
            const struct fours *list = &lists[n];
            lanes sums0 = SPLAT(0), sums1 = sums0, sums2 = sums0, sums3 = sums0;
            for (uint32_t i = 0; i < list->count; i++) {
                const lanes codes = SPLAT(list->word[i]), *weights = w + list->row[i];
                sums0 = DOT4(sums0, codes, weights[0]);
                sums1 = DOT4(sums1, codes, weights[1]);
                sums2 = DOT4(sums2, codes, weights[2]);
                sums3 = DOT4(sums3, codes, weights[3]);
            }
            store(acc[n] + o, sums0);
            store(acc[n] + o + LANES, sums1);
            store(acc[n] + o + 2 * LANES, sums2);
            store(acc[n] + o + 3 * LANES, sums3);
        }
    for (uint32_t n = 0; n < images; n++)
        for (uint32_t o = 0; o < step->outputs; o++)
            acc[n][o] += (uint32_t)step->b[o];
}

#ifdef MLP_CONVOLUTIONS
#define VECTORS (TILE / LANES)
#define POSITIONS (VECTORS > 2 ? 2 : 8 / VECTORS)

/* acc of positions of a row of a map, which begin at x + at[k], and of a tile of outputs. The last
 * word of a line reaches beyond it: there the weights are 0. */
static void accumulate_tile(const struct mlp_step *step, uint32_t tile, const uint8_t *x,
                            const uint32_t *at, uint32_t (*acc)[SUMS(MLP_MAX_OUTPUTS)])
{
    const uint32_t vectors = (step->outputs + TILE - 1) / TILE * VECTORS, line = step->line;
    const lanes *w = (const lanes *)step->w + tile * VECTORS;
    lanes sums[POSITIONS][VECTORS];
    for (int k = 0; k < POSITIONS; k++)
        for (int v = 0; v < VECTORS; v++)
            sums[k][v] = SPLAT(0);
    for (uint32_t row = 0; row < step->rows; row++, x += line)
        for (uint32_t i = 0; i < step->width; i += 4, w += vectors)
            for (int k = 0; k < POSITIONS; k++) {
                uint32_t word;
                memcpy(&word, x + at[k] + i, sizeof word);
                for (int v = 0; v < VECTORS; v++)
                    sums[k][v] = DOT4(sums[k][v], SPLAT(word), w[v]);
            }
    for (int k = 0; k < POSITIONS; k++)
        for (int v = 0; v < VECTORS; v++)
            store(acc[k] + tile * TILE + v * LANES, sums[k][v]);
}
#endif
#else
/* A weight is stored as an unsigned field, code + MLP_OFFSET, MLP_FIELD_BITS wide. Fields k and
 * k + FIELDS/2 of a word lie 16 bits apart, and a field times an input stays below 2^16: one
 * 32-bit multiplication makes two products. MLP_OFFSET * (sum of the inputs) is taken off again. */
#define BLOCK 1
#define SLACK 0
#define FIELDS (32 / MLP_FIELD_BITS)
#define SUMS(outputs) (((outputs) + FIELDS - 1) / FIELDS * FIELDS)
#define CHUNK (MLP_MAX_INPUTS < 256 ? MLP_MAX_INPUTS : 256)
#define PAIR_MASK (((UINT32_C(1) << MLP_FIELD_BITS) - 1) * UINT32_C(0x10001))

/* Add four inputs' products to the accumulators of four fields: k and k + 1 (low0, low1), and those
 * FIELDS/2 further on (high0, high1). low also takes the products of high, times 2^16: subtracting
 * them once, at the end, is cheaper than masking here. Four rows at a time cut the traffic on the
 * accumulators; spelled out because compilers vectorize this and not the loop over four. */
#define PAIR(r, shift) ((row##r[j] >> (shift) & PAIR_MASK) * x##r)
static void add_rows(uint32_t *restrict low0, uint32_t *restrict low1, uint32_t *restrict high0,
                     uint32_t *restrict high1, const uint32_t *const row[4], const uint32_t x[4],
                     uint32_t words, uint32_t shift)
{
    const uint32_t *row0 = row[0], *row1 = row[1], *row2 = row[2], *row3 = row[3];
    const uint32_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], next = shift + MLP_FIELD_BITS;
    for (uint32_t j = 0; j < words; j++) {
        uint32_t a0 = PAIR(0, shift), a1 = PAIR(1, shift), a2 = PAIR(2, shift), a3 = PAIR(3, shift);
        uint32_t b0 = PAIR(0, next), b1 = PAIR(1, next), b2 = PAIR(2, next), b3 = PAIR(3, next);
        low0[j] += a0 + a1 + a2 + a3;
        low1[j] += b0 + b1 + b2 + b3;
        high0[j] += (a0 >> 16) + (a1 >> 16) + (a2 >> 16) + (a3 >> 16);
        high1[j] += (b0 >> 16) + (b1 >> 16) + (b2 >> 16) + (b3 >> 16);
    }
}

/* acc = x @ w + b modulo 2^32; the true value lies in (-2^24, 2^24). */
static void accumulate_one(const struct mlp_step *step, const uint8_t *x, uint32_t *acc)
{
    uint8_t nonzero[CHUNK];                     /* most pixels are 0: only the others cost time */
    const uint32_t *w = step->w;
    uint32_t sum = 0, half = SUMS(step->outputs) / 2, words = 2 * half / FIELDS;
    for (uint32_t o = 0; o < 2 * half; o++)
        acc[o] = 0;
    for (uint32_t left = step->inputs, size; left; left -= size, x += size, w += size * words) {
        uint32_t count = 0;
        size = left < CHUNK ? left : CHUNK;
        for (uint32_t i = 0; i < size; i++) {
            nonzero[count] = (uint8_t)i;
            count += x[i] != 0;                 /* no branch to mispredict */
            sum += x[i];
        }
        for (uint32_t n = 0; n < count; n += 4) {
            const uint32_t *row[4];
            uint32_t factor[4];
            for (uint32_t r = 0; r < 4; r++) {  /* the last group is filled up with 0 * row 0 */
                uint32_t i = n + r < count ? nonzero[n + r] : 0;
                row[r] = w + i * words;
                factor[r] = n + r < count ? MLP_STEP * (uint32_t)x[i] : 0;
            }
            for (uint32_t k = 0; k < FIELDS / 2; k += 2) {
                uint32_t *low = acc + k * words, *high = low + half;
                add_rows(low, low + words, high, high + words, row, factor, words,
                         k * MLP_FIELD_BITS);
            }
        }
    }
    for (uint32_t o = 0; o < half; o++)
        acc[o] -= acc[o + half] << 16;
    for (uint32_t o = 0; o < step->outputs; o++)
        acc[o] += (uint32_t)step->b[o] - MLP_OFFSET * sum;
}

static void accumulate(const struct mlp_step *step, const uint8_t *x, uint32_t stride,
                       uint32_t images, uint32_t (*acc)[SUMS(MLP_MAX_OUTPUTS)])
{
    for (uint32_t n = 0; n < images; n++)
        accumulate_one(step, x + n * stride, acc[n]);
}
#endif

/* clip(round_half_even(acc / 2^shift), 0, MLP_QMAX); negatives give 0: nothing signed shifts. */
static uint8_t requantize(uint32_t acc, uint8_t shift)
{
    acc = acc > INT32_MAX ? 0 : acc;            /* no branch: half of them are negative */
    acc = (acc + (UINT32_C(1) << (shift - 1)) - 1 + (acc >> shift & 1)) >> shift;
    return (uint8_t)(acc < MLP_QMAX ? acc : MLP_QMAX);
}

static void requantize_all(const struct mlp_step *step, const uint32_t *restrict acc,
                           uint8_t *restrict codes)
{
    for (uint32_t o = 0; o < step->outputs; o++)
        codes[o] = requantize(acc[o], step->shift[o]);
}

#ifdef MLP_MAPS
/* Of each channel the largest code of a window. */
static void take_largest(const struct mlp_step *step, const uint8_t *restrict window,
                         uint8_t *restrict codes)
{
    for (uint32_t c = 0; c < step->outputs; c++)
        codes[c] = window[c];
    for (uint32_t row = 0; row < step->rows; row++)
        for (uint32_t i = 0; i < step->width; i += step->outputs)
            for (uint32_t c = 0; c < step->outputs; c++) {
                uint8_t code = window[row * step->line + i + c];
                codes[c] = code > codes[c] ? code : codes[c];
            }
}

/* Of each channel the mean of a window of up to 2 x 2, rounded half to even: always of four codes,
 * where an axis has one, of the same one twice. */
static void take_mean(const struct mlp_step *step, const uint8_t *restrict window,
                      uint8_t *restrict codes)
{
    const uint8_t *below = window + (step->rows - 1) * step->line;
    const uint32_t right = step->width - step->outputs;
    for (uint32_t c = 0; c < step->outputs; c++) {
        uint32_t sum = (uint32_t)window[c] + window[c + right] + below[c] + below[c + right];
        codes[c] = (uint8_t)((sum + 1 + (sum >> 2 & 1)) >> 2);
    }
}

#ifdef MLP_CONVOLUTIONS
#ifdef LANES
/* What is beyond the outputs is overwritten later. */
static void requantize_tile(const uint32_t *restrict acc, const int32_t *restrict b,
                            const uint8_t *restrict shift, uint8_t *restrict codes)
{
    for (int o = 0; o < TILE; o++)
        codes[o] = requantize(acc[o] + (uint32_t)b[o], shift[o]);
}
#endif

/* The codes of a row of a map: a convolution's positions. */
static void convolve(const struct mlp_step *step, const uint8_t *x, uint8_t *codes)
{
#ifdef LANES
    for (uint32_t i = 0; i < step->wide; i += POSITIONS) {
        uint32_t at[POSITIONS], acc[POSITIONS][SUMS(MLP_MAX_OUTPUTS)];
        for (uint32_t k = 0; k < POSITIONS; k++)        /* beyond the row the first one again */
            at[k] = (i + k < step->wide ? i + k : i) * step->across;
        for (uint32_t tile = 0; tile * TILE < step->outputs; tile++)
            accumulate_tile(step, tile, x, at, acc);
        for (uint32_t k = 0; k < POSITIONS && i + k < step->wide; k++, codes += step->outputs)
            for (uint32_t o = 0; o < step->outputs; o += TILE)
                requantize_tile(acc[k] + o, step->b + o, step->shift + o, codes + o);
    }
#else
    for (uint32_t i = 0; i < step->wide; i++, codes += step->outputs) {
        uint32_t acc[SUMS(MLP_MAX_OUTPUTS)];
        uint8_t patch[MLP_MAX_INPUTS], *to = patch;
        for (uint32_t row = 0; row < step->rows; row++)
            for (uint32_t k = 0; k < step->width; k++)
                *to++ = x[i * step->across + row * step->line + k];
        accumulate_one(step, patch, acc);
        requantize_all(step, acc, codes);
    }
#endif
}
#endif

/* A step from map to map: a convolution if it has weights. */
static void run_map(const struct mlp_step *step, const uint8_t *x, uint8_t *codes)
{
#if defined(MLP_CONVOLUTIONS) && defined(LANES)
    uint8_t copy[MLP_INPUTS + SLACK] = {0};
    if (step == mlp_steps)                      /* the caller's image has no slack */
        x = memcpy(copy, x, MLP_INPUTS);
#endif
    x += step->start;
    for (uint32_t y = 0; y < step->high; y++, x += step->down, codes += step->wide * step->outputs)
#ifdef MLP_CONVOLUTIONS
        if (step->w)
            convolve(step, x, codes);
        else
#endif
            for (uint32_t i = 0; i < step->wide; i++)
                if (step->is_max)
                    take_largest(step, x + i * step->across, codes + i * step->outputs);
                else
                    take_mean(step, x + i * step->across, codes + i * step->outputs);
}
#endif

/* The logits of up to BLOCK images. */
static void predict(const uint8_t *image, int32_t *logits, uint32_t images)
{
    uint32_t acc[BLOCK][SUMS(MLP_MAX_OUTPUTS)];
    uint8_t codes[MLP_BUFFERS][BLOCK][MLP_MAX_CODES + SLACK];
    const uint8_t *x = image;
    uint32_t stride = MLP_INPUTS;
    for (int i = 0; i < MLP_STEPS; i++) {
        const struct mlp_step *step = &mlp_steps[i];
        uint8_t (*to)[MLP_MAX_CODES + SLACK] = codes[i % MLP_BUFFERS];
#ifdef MLP_MAPS
        if (step->high)
            for (uint32_t n = 0; n < images; n++)
                run_map(step, x + n * stride, to[n]);
        else
#endif
            accumulate(step, x, stride, images, acc);
        for (uint32_t n = 0; n < images && step->shift && !step->high; n++)     /* but the last */
            requantize_all(step, acc[n], to[n]);
        x = to[0];
        stride = sizeof to[0];
    }
    for (uint32_t n = 0; n < images; n++)
        for (int o = 0; o < MLP_CLASSES; o++)   /* casting a negative is not portable */
            *logits++ = acc[n][o] > INT32_MAX ? -(int32_t)(0 - acc[n][o]) : (int32_t)acc[n][o];
}

void mlp_predict_batch(const uint8_t *images, int32_t *logits, uint32_t count)
{
    while (count) {
        uint32_t block = count < BLOCK ? count : BLOCK;
        predict(images, logits, block);
        images += block * MLP_INPUTS;
        logits += block * MLP_CLASSES;
        count -= block;
    }
}

int mlp_predict(const uint8_t image[MLP_INPUTS], int32_t logits[MLP_CLASSES])
{
    int best = 0;
    mlp_predict_batch(image, logits, 1);
    for (int o = 1; o < MLP_CLASSES; o++)
        if (logits[o] > logits[best])
            best = o;
    return best;
}

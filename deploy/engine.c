/* Integer-only MLP in C99: no floating point, no allocation, no library.
 *
 * The compiler's own macros choose between two ways to the same integers, each with its table in
 * mlp_weights.h. Where an instruction multiplies bytes, LANES outputs at a time: DOT4 adds to every
 * 32-bit lane the products of its four bytes of codes (unsigned) and of weights (signed). Elsewhere,
 * or with -DMLP_PORTABLE, plain C and a table that takes as many bits as the weights have.
 */
#include "mlp.h"

#if defined(MLP_PORTABLE) || !defined(__GNUC__) || defined(__ARM_BIG_ENDIAN)
#elif defined(__AVX512VNNI__)
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
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define LANES 4
#define SPLAT vdupq_n_u32
typedef uint32x4_t lanes;
static inline lanes DOT4(lanes sums, lanes x, lanes w)
{   /* both unsigned: w + 128, and 128 * x off again */
    const uint8x16_t codes = vreinterpretq_u8_u32(x), sign = vdupq_n_u8(128);
    lanes offset = vdotq_u32(vdupq_n_u32(0), codes, sign);
    return vsubq_u32(vdotq_u32(sums, codes, veorq_u8(vreinterpretq_u8_u32(w), sign)), offset);
}
#endif
#include "mlp_weights.h"

#ifdef LANES
#include <string.h>

/* Outputs of the table, which zeros fill up to four times the most LANES. */
#define SUMS(outputs) (((outputs) + 63) / 64 * 64)

/* Up to four codes as a word, the first one in its lowest byte. */
static uint32_t four(const uint8_t *x, uint32_t left)
{
    if (left >= 4)
        return x[0] | (uint32_t)x[1] << 8 | (uint32_t)x[2] << 16 | (uint32_t)x[3] << 24;
    return x[0] | (left > 1 ? (uint32_t)x[1] << 8 : 0) | (left > 2 ? (uint32_t)x[2] << 16 : 0);
}

static void store(uint32_t *acc, lanes sums)
{
    memcpy(acc, &sums, sizeof sums);
}

/* acc = x @ w + b modulo 2^32; the true value lies in (-2^24, 2^24). */
static void accumulate(const struct mlp_layer *layer, const uint8_t *x, uint32_t *acc)
{
    uint32_t word[(MLP_MAX_INPUTS + 3) / 4];    /* most pixels are 0: only the other fours count */
    const lanes *row[(MLP_MAX_INPUTS + 3) / 4], *w = (const lanes *)layer->w;
    uint32_t count = 0, vectors = SUMS(layer->outputs) / LANES;
    for (uint32_t i = 0; i < layer->inputs; i += 4, w += vectors) {
        word[count] = four(x + i, layer->inputs - i);
        row[count] = w;
        count += word[count] != 0;              /* no branch to mispredict */
    }
    for (uint32_t v = 0; v < vectors; v += 4) {
        lanes sums0 = SPLAT(0), sums1 = sums0, sums2 = sums0, sums3 = sums0;
        for (uint32_t n = 0; n < count; n++) {
            const lanes codes = SPLAT(word[n]), *weights = row[n] + v;
            sums0 = DOT4(sums0, codes, weights[0]);
            sums1 = DOT4(sums1, codes, weights[1]);
            sums2 = DOT4(sums2, codes, weights[2]);
            sums3 = DOT4(sums3, codes, weights[3]);
        }
        store(acc + v * LANES, sums0);
        store(acc + (v + 1) * LANES, sums1);
        store(acc + (v + 2) * LANES, sums2);
        store(acc + (v + 3) * LANES, sums3);
    }
    for (uint32_t o = 0; o < layer->outputs; o++)
        acc[o] += (uint32_t)layer->b[o];
}
#else
/* A weight is stored as an unsigned field, code + MLP_OFFSET, MLP_FIELD_BITS wide. Fields k and
 * k + FIELDS/2 of a word lie 16 bits apart, and a field times an input stays below 2^16: one
 * 32-bit multiplication makes two products. MLP_OFFSET * (sum of the inputs) is taken off again. */
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
static void accumulate(const struct mlp_layer *layer, const uint8_t *x, uint32_t *acc)
{
    uint8_t nonzero[CHUNK];                     /* most pixels are 0: only the others cost time */
    const uint32_t *w = layer->w;
    uint32_t sum = 0, half = SUMS(layer->outputs) / 2, words = 2 * half / FIELDS;
    for (uint32_t o = 0; o < 2 * half; o++)
        acc[o] = 0;
    for (uint32_t left = layer->inputs, size; left; left -= size, x += size, w += size * words) {
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
    for (uint32_t o = 0; o < layer->outputs; o++)
        acc[o] += (uint32_t)layer->b[o] - MLP_OFFSET * sum;
}
#endif

/* clip(round_half_even(acc / 2^shift), 0, MLP_QMAX); negatives give 0: nothing signed shifts. */
static uint8_t requantize(uint32_t acc, uint8_t shift)
{
    acc = acc > INT32_MAX ? 0 : acc;            /* no branch: half of them are negative */
    acc = (acc + (UINT32_C(1) << (shift - 1)) - 1 + (acc >> shift & 1)) >> shift;
    return (uint8_t)(acc < MLP_QMAX ? acc : MLP_QMAX);
}

#ifdef MLP_POOLED
/* The first layer's codes: means of 2 x 2 pixels of the image's centre, rounded half to even. */
static void pool(const uint8_t *restrict image, uint8_t *restrict codes)
{
    const int edge = 14 - MLP_POOLED;           /* pixels left out on each side */
    for (int y = 0; y < MLP_POOLED; y++) {
        const uint8_t *upper = image + 28 * (edge + 2 * y) + edge, *lower = upper + 28;
        for (int x = 0; x < 2 * MLP_POOLED; x += 2) {
            uint32_t sum = (uint32_t)upper[x] + upper[x + 1] + lower[x] + lower[x + 1];
            *codes++ = (uint8_t)((sum + 1 + (sum >> 2 & 1)) >> 2);
        }
    }
}
#endif

int mlp_predict(const uint8_t image[MLP_INPUTS], int32_t logits[MLP_CLASSES])
{
    uint32_t acc[SUMS(MLP_MAX_OUTPUTS)];
    uint8_t codes[MLP_MAX_CODES];
    const uint8_t *x = image;
    int best = 0;
#ifdef MLP_POOLED
    pool(image, codes);
    x = codes;
#endif
    for (int i = 0; i < MLP_LAYERS; i++) {
        const struct mlp_layer *layer = &mlp_layers[i];
        accumulate(layer, x, acc);
        if (layer->shift)                       /* every layer but the last */
            for (uint32_t o = 0; o < layer->outputs; o++)
                codes[o] = requantize(acc[o], layer->shift[o]);
        x = codes;
    }
    for (int o = 0; o < MLP_CLASSES; o++) {     /* casting a negative is not portable */
        logits[o] = acc[o] > INT32_MAX ? -(int32_t)(0 - acc[o]) : (int32_t)acc[o];
        if (logits[o] > logits[best])
            best = o;
    }
    return best;
}

void mlp_predict_batch(const uint8_t *images, int32_t *logits, uint32_t count)
{
    for (; count; count--, images += MLP_INPUTS, logits += MLP_CLASSES)
        mlp_predict(images, logits);
}

/* Integer-only MLP in C99: no floating point, no allocation, no dependencies.
 *
 * int mlp_predict(image, logits) fills the accumulators of the last layer and returns the class.
 * With -DMLP_MAIN a program that classifies the images of an idx file:
 *     cc -O3 -march=native -DMLP_MAIN mlp.c -o mlp && ./mlp IMAGES [LABELS]
 */
#define MLP_WEIGHTS
#include "mlp.h"

/* A weight is stored as an unsigned field, code + MLP_OFFSET, MLP_FIELD_BITS wide. Fields k and
 * k + FIELDS/2 of a word lie 16 bits apart, and a field times an input stays below 2^16: one
 * 32-bit multiplication makes two products. MLP_OFFSET * (sum of the inputs) is taken off again. */
#define FIELDS (32 / MLP_FIELD_BITS)
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
    uint16_t nonzero[MLP_MAX_INPUTS + 1];   /* most pixels are 0: only the others cost time */
    uint32_t count = 0, sum = 0, words = layer->words, half = words * (FIELDS / 2);
    for (uint32_t i = 0; i < layer->inputs; i++) {
        nonzero[count] = (uint16_t)i;
        count += x[i] != 0;                     /* no branch to mispredict */
        sum += x[i];
    }
    for (uint32_t o = 0; o < 2 * half; o++)
        acc[o] = 0;
    for (uint32_t n = 0; n < count; n += 4) {
        const uint32_t *row[4];
        uint32_t factor[4];
        for (uint32_t r = 0; r < 4; r++) {      /* the last group is filled up with 0 * row 0 */
            uint32_t i = n + r < count ? nonzero[n + r] : 0;
            row[r] = layer->w + i * words;
            factor[r] = n + r < count ? MLP_STEP * (uint32_t)x[i] : 0;
        }
        for (uint32_t k = 0; k < FIELDS / 2; k += 2) {
            uint32_t *low = acc + k * words, *high = low + half;
            add_rows(low, low + words, high, high + words, row, factor, words, k * MLP_FIELD_BITS);
        }
    }
    for (uint32_t o = 0; o < half; o++)
        acc[o] -= acc[o + half] << 16;
    for (uint32_t o = 0; o < layer->outputs; o++)
        acc[o] += (uint32_t)layer->b[o] - MLP_OFFSET * sum;
}

/* clip(round_half_even(acc / 2^shift), 0, MLP_QMAX); negatives give 0: nothing signed shifts. */
static uint8_t requantize(uint32_t acc, uint8_t shift)
{
    if (acc > INT32_MAX)
        return 0;
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
    uint32_t acc[MLP_MAX_SUMS];
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

#ifdef MLP_MAIN
#include <stdio.h>
#include <stdlib.h>

static void fail(const char *path, const char *reason)
{
    fprintf(stderr, "error: %s %s\n", path, reason);
    exit(2);
}

/* Open an idx file of uint8 whose items have item_bytes each; returns their number. */
static uint32_t open_idx(const char *path, int rank, uint32_t item_bytes, FILE **file)
{
    uint8_t head[16];
    size_t head_bytes = 4 + 4 * (size_t)rank;
    uint64_t size[4] = {0, 1, 1, 1};
    long end;
    *file = fopen(path, "rb");
    if (!*file)
        fail(path, "can't be opened");
    if (fseek(*file, 0, SEEK_END) || (end = ftell(*file)) < 0 || fseek(*file, 0, SEEK_SET))
        fail(path, "is not a plain file");
    if (fread(head, 1, head_bytes, *file) != head_bytes)
        fail(path, "is truncated");
    if (head[0] || head[1] || head[2] != 8 || head[3] != rank)
        fail(path, "is not an uncompressed idx file of the right kind");
    for (int r = 0; r < rank; r++)
        size[r] = (uint32_t)head[4 + 4 * r] << 24 | (uint32_t)head[5 + 4 * r] << 16 |
                  (uint32_t)head[6 + 4 * r] << 8 | head[7 + 4 * r];
    if (size[1] * size[2] != item_bytes)
        fail(path, "holds images of the wrong size");
    if ((uint64_t)end != head_bytes + size[0] * item_bytes)
        fail(path, "is truncated, or longer than its header says");
    return (uint32_t)size[0];
}

int main(int argc, char **argv)
{
    FILE *images, *labels = NULL;
    uint8_t image[MLP_INPUTS], label;
    int32_t logits[MLP_CLASSES];
    uint32_t correct = 0, count;
    if (argc < 2 || argc > 3)
        fail("usage:", "mlp IMAGES [LABELS], two idx files");
    count = open_idx(argv[1], 3, MLP_INPUTS, &images);
    if (argc == 3 && open_idx(argv[2], 1, 1, &labels) != count)
        fail(argv[2], "has another number of items than the images");
    for (uint32_t n = 0; n < count; n++) {
        if (fread(image, 1, MLP_INPUTS, images) != MLP_INPUTS ||
            (labels && fread(&label, 1, 1, labels) != 1))
            fail(argv[1], "or its labels can't be read");
        int best = mlp_predict(image, logits);
        if (labels)
            correct += best == label;
        else
            printf("%d\n", best);
    }
    if (labels && count)
        printf("accuracy %lu.%02lu %% (%lu of %lu)\n", (unsigned long)(100ull * correct / count),
               (unsigned long)(10000ull * correct / count % 100), (unsigned long)correct,
               (unsigned long)count);
    return 0;
}
#endif

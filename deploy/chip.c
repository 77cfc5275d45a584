/* Integer-only MLP for small chips, in C99: additions of selected rows, no multiplication, no
 * floating point, no allocation. int mlp_predict(image, logits) fills the accumulators of the last
 * layer and returns the class.
 *
 * Numbers lie in bit planes: word k holds bit k of MLP_LANES numbers, and a full adder of five
 * instructions adds one bit of all of them. An input's code is written in digits -1, 0 and 1 of
 * powers of two, none beside another (2.8 on average for a pixel, 1.2 fewer than bits); a digit
 * selects the input's row of weights, which is added to the accumulators from that plane on. Fewer
 * bits of weights and of activations cost less flash and less time, in proportion.
 */
#define MLP_WEIGHTS
#include "mlp.h"

#ifdef __AVR__
#pragma GCC optimize "O3"                   /* Arduino's -Os would leave c[] below in memory */
#include <avr/pgmspace.h>
#define FLASH(address) pgm_read_byte(address)
#else
#define FLASH(address) (*(address))
#endif

#if defined __GNUC__ && __GNUC__ >= 8
#define UNROLL _Pragma("GCC unroll 9")      /* c[] below shall be registers */
#else
#define UNROLL
#endif

typedef mlp_word word;

#define CODE_PLANES 10                      /* of an input: at most 8 bits, two planes of zeros */
#define ROW_BYTES (MLP_BITS * (unsigned)sizeof(word))
#define ROW(w, offset) (const word *)(const void *)((const char *)(w) + (offset))
#define STEP (MLP_BITS == 1)                /* weights -1 and 1 are 2 apart: rows count twice */

/* sum += a + b; returns the carries. */
static inline word add(word *sum, word a, word b)
{
    word half = *sum ^ a, carry = (word)((*sum & a) | (half & b));
    *sum = half ^ b;
    return carry;
}

/* Add the listed rows, an even number, to the numbers in the planes v; two at a time share the way
 * of the carries. No number passes its last plane: the export proved that. */
static void add_rows(const word *w, const uint16_t *list, const uint16_t *end, word *v)
{
    word c[MLP_BITS + 1];
    UNROLL
    for (int k = 0; k <= MLP_BITS; k++)
        c[k] = v[k];
    do {
        const word *a = ROW(w, list[0]), *b = ROW(w, list[1]);
        word first = 0, second = 0;
        list += 2;
        UNROLL
        for (int k = 0; k < MLP_BITS; k++) {
            word next = add(&c[k], FLASH(a + k), FLASH(b + k));
            second = add(&c[k], first, second);
            first = next;
        }
        second = add(&c[MLP_BITS], first, second);
        for (word *up = v + MLP_BITS + 1; second; up++) {
            word old = *up;
            *up = old ^ second;
            second &= old;
        }
    } while (list + 1 < end);
    UNROLL
    for (int k = 0; k <= MLP_BITS; k++)
        v[k] = c[k];
}

/* List the rows of the inputs whose digit of 2^plane is -1, or else 1; returns the list's end.
 * carry[] goes from each plane to the next one: planes must be asked for in their order. */
static uint16_t *list_rows(const word *x, word *carry, unsigned groups, int negative,
                           uint16_t *list)
{
    unsigned start = 0;
    for (unsigned g = 0; g < groups; g++, x += CODE_PLANES, start += MLP_LANES * ROW_BYTES) {
        word digit = x[0] ^ carry[g];
        unsigned row = start;
        if (!digit)
            continue;
        word minus = digit & x[1], selected = negative ? minus : digit ^ minus;
        carry[g] = (word)((carry[g] & (word)~digit) | minus);
        while (selected) {
            UNROLL
            for (unsigned half = MLP_LANES / 2; half; half /= 2)
                if (!(selected & (word)(((word)1 << half) - 1))) {
                    selected = (word)(selected >> half);
                    row += half * ROW_BYTES;
                }
            *list++ = (uint16_t)row;
            selected = (word)(selected >> 1);
            row += ROW_BYTES;
        }
    }
    return list;
}

/* The planes v as sums of the layer: v = start + x @ (w + MLP_OFFSET); returns the constant, equal
 * for all outputs, that makes it the accumulator: v + constant modulo 2^planes. */
static uint32_t accumulate(const struct mlp_layer *layer, const word *x, word *v)
{
    uint16_t list[MLP_MAX_INPUTS + 1];
    word carry[MLP_MAX_GROUPS];
    unsigned size = layer->sums;
    uint32_t sum = 0;
    for (unsigned k = 0; k < size; k++)
        v[k] = (word)~FLASH(layer->start + k);
    for (int negative = 1; negative >= 0; negative--) {
        for (unsigned g = 0; g < layer->groups; g++)
            carry[g] = 0;
        for (unsigned plane = 0; plane <= layer->code_bits; plane++) {
            uint16_t *end = list_rows(x + plane, carry, layer->groups, negative, list);
            const word *w = layer->w;
            uint32_t count = (uint32_t)(end - list) << plane;
            sum = negative ? sum - count : sum + count;
            if (end == list)
                continue;
            *end++ = layer->none;               /* one too many, where the number was even */
            for (unsigned at = plane + STEP; at < size; at += layer->planes, w += layer->rows)
                    add_rows(w, list, end, v + at);
        }
        if (negative)                           /* v was -1 - start, and what it is now is ... */
            for (unsigned k = 0; k < size; k++)
                v[k] = (word)~v[k];             /* ... start minus the rows added so far */
    }
    return 0 - layer->zero - MLP_OFFSET * sum;
}

/* x = clip(round_half_even((v + constant) / 2^shift), 0, 2^MLP_QBITS - 1). */
static void requantize(const struct mlp_layer *layer, const word *places, uint32_t constant,
                       word *v, word *x)
{
    unsigned top = layer->planes - 1u, least = layer->shift;
    word carry = 0, sticky = 0, over = 0;
    for (unsigned k = 0; k <= top; k++, constant >>= 1)
        carry = add(&v[k], (word)(0 - (constant & 1)), carry);
    for (unsigned i = 0, step = 1; i < layer->spread; i++, step *= 2) {
        word where = FLASH(places + i);         /* the numbers to be shifted by step more */
        for (unsigned k = 0; k < step; k++)
            sticky |= v[k] & where;
        for (unsigned k = 0; k + step < top; k++)
            v[k] ^= (v[k] ^ v[k + step]) & where;
        for (unsigned k = top - step; k < top; k++)
            v[k] ^= (v[k] ^ v[top]) & where;
    }
    for (unsigned k = 0; k + 1 < least; k++)
        sticky |= v[k];
    carry = v[least - 1] & (sticky | v[least]);
    for (unsigned k = least + MLP_QBITS; k < top; k++)
        over |= v[k];
    for (unsigned k = 0; k < MLP_QBITS; k++) {
        word old = v[least + k < top ? least + k : top];
        x[k] = old ^ carry;
        carry &= old;
    }
    for (unsigned k = 0; k < MLP_QBITS; k++)
        x[k] = (word)((x[k] | over | carry) & ~v[top]);
    x[MLP_QBITS] = x[MLP_QBITS + 1] = 0;
}

/* The codes of an image in planes: its bytes, or means of 2 x 2 of them, rounded half to even. */
static void read_image(const uint8_t *image, word *x)
{
    word bit = 1;
    for (unsigned k = 0; k < MLP_MAX_GROUPS * CODE_PLANES; k++)
        x[k] = 0;
#ifdef MLP_POOLED
    image += 29 * (14 - MLP_POOLED);
    for (int row = 0; row < MLP_POOLED; row++, image += 56 - 2 * MLP_POOLED)
        for (int column = 0; column < MLP_POOLED; column++, image += 2) {
            unsigned code = (unsigned)image[0] + image[1] + image[28] + image[29];
            code = (code + 1 + (code >> 2 & 1)) >> 2;
#else
    for (int i = 0; i < MLP_INPUTS; i++) {
            unsigned code = image[i];
#endif
            for (word *plane = x; code; plane++, code >>= 1)
                if (code & 1)
                    *plane |= bit;
            bit = (word)(bit << 1);
            if (!bit) {
                bit = 1;
                x += CODE_PLANES;
            }
        }
}

int mlp_predict(const uint8_t image[MLP_INPUTS], int32_t logits[MLP_CLASSES])
{
    word x[MLP_MAX_GROUPS * CODE_PLANES], sums[MLP_MAX_PLANES], *v = sums, lane = 1;
    const struct mlp_layer *layer = mlp_layers;
    uint32_t constant;
    int best = 0;
    read_image(image, x);
    for (;; layer++) {
        constant = accumulate(layer, x, v);
        if (!layer->shift)
            break;
        const word *places = layer->places;
        word *codes = x;
        for (word *sum = v; sum < v + layer->sums; sum += layer->planes) {
            requantize(layer, places, constant, sum, codes);
            places += layer->spread;
            codes += CODE_PLANES;
        }
    }
    for (int o = 0; o < MLP_CLASSES; o++) {
        uint32_t acc = 0, bit = 1;
        for (unsigned k = 0; k < layer->planes; k++, bit <<= 1)
            if (v[k] & lane)
                acc |= bit;
        lane = (word)(lane << 1);
        if (!lane) {
            lane = 1;
            v += layer->planes;
        }
        bit >>= 1;                              /* the sign's */
        acc = (((acc + constant) & (2 * bit - 1)) ^ bit) - bit;
        logits[o] = acc > INT32_MAX ? -(int32_t)(0 - acc) : (int32_t)acc;
        if (logits[o] > logits[best])
            best = o;
    }
    return best;
}

/* Integer-only network for small chips, in C99: additions of selected rows, no multiplication, no
 * floating point, no allocation. int mlp_predict(image, logits) fills the accumulators of the last
 * layer and returns the class.
 *
 * Numbers lie in bit planes: word k holds bit k of MLP_LANES numbers, and a full adder of five
 * instructions adds one bit of all of them. An input's code is written in digits -1, 0 and 1 of
 * powers of two, none beside another (2.8 on average for a pixel, 1.2 fewer than bits); a digit
 * selects the input's row of weights, which is added to the accumulators from that plane on. Fewer
 * bits of weights and of activations cost less flash and less time, in proportion.
 *
 * A convolution is the same on a patch. Positions beside each other share a word: their patches
 * overlap, so one wider patch has a table with each position's weights in its own lanes. Maps are
 * planes, too, and stream: a layer keeps as many lines of its input as its windows are high.
 */
#define MLP_WEIGHTS
#include "mlp.h"

#ifdef __AVR__
#pragma GCC optimize "O3"                   /* Arduino's -Os would leave c[] below in memory */
#ifdef MLP_MAPS
#pragma GCC optimize "no-move-loop-invariants"  /* for want of registers to move them to */
#endif
#include <avr/pgmspace.h>
#if MLP_LANES == 8
#define FLASH(address) pgm_read_byte(address)
#else
#define FLASH(address) pgm_read_word(address)
#endif
#else
#define FLASH(address) (*(address))
#endif

#ifdef __GNUC__
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif

#if defined __GNUC__ && __GNUC__ >= 8
#define UNROLL _Pragma("GCC unroll 9")      /* c[] below shall be registers */
#else
#define UNROLL
#endif

typedef mlp_word word;

#define CODE_PLANES 10                      /* of a byte: 8 bits, two planes of zeros */
#ifdef MLP_MAPS                             /* planes of a layer's inputs, and rows listed at once */
#define PLANES(layer) ((layer)->code_bits + (HAS_MINUS(layer) ? 2u : 0u))
#define LIST (MLP_LANES + MLP_LANES / 2)
#define COUNT unsigned                      /* of listed rows, as often as their plane says */
#else
#define PLANES(layer) CODE_PLANES
#define LIST MLP_MAX_INPUTS
#define COUNT uint32_t
#endif
#define ROW_BYTES (MLP_BITS * (unsigned)sizeof(word))
#define STEP (MLP_BITS == 1)                /* weights -1 and 1 are 2 apart: rows count twice */
/* Codes of few bits have hardly fewer digits than bits: there the bits are the digits, all 1. */
#define HAS_MINUS(layer) (MLP_QBITS > MLP_PLAIN || (layer)->code_bits > MLP_PLAIN ? 1u : 0u)
#define ZEROS (MLP_QBITS > MLP_PLAIN ? 2 : 0)   /* planes of zeros after codes that have */

/* sum += a + b; returns the carries. */
static inline word add_bit(word *sum, word a, word b)
{
    word half = *sum ^ a, carry = (word)((*sum & a) | (half & b));
    *sum = half ^ b;
    return carry;
}

#define ROW(w, offset) (const void *)((const char *)(w) + (narrow ? (offset) / 2 : (offset)))
#define PLANE(row, k) (word)(narrow ? FLASH((const uint16_t *)(row) + (k)) : \
                             FLASH((const word *)(row) + (k)))

/* Add the listed rows, an even number, to the numbers in the planes v; two at a time share the way
 * of the carries. No number passes its last plane: the export proved that. The rows of a narrow
 * table have half as many lanes. */
static ALWAYS_INLINE void add(const void *w, const uint16_t *list, const uint16_t *end, word *v,
                              int narrow)
{
    word c[MLP_BITS + 1];
    UNROLL
    for (int k = 0; k <= MLP_BITS; k++)
        c[k] = v[k];
    do {
        const void *a = ROW(w, list[0]), *b = ROW(w, list[1]);
        word first = 0, second = 0;
        list += 2;
        UNROLL
        for (int k = 0; k < MLP_BITS; k++) {
            word next = add_bit(&c[k], PLANE(a, k), PLANE(b, k));
            second = add_bit(&c[k], first, second);
            first = next;
        }
        second = add_bit(&c[MLP_BITS], first, second);
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

static void add_rows(const void *w, const uint16_t *list, const uint16_t *end, word *v)
{
    add(w, list, end, v, 0);
}

#ifdef MLP_NARROW
static void add_narrow_rows(const void *w, const uint16_t *list, const uint16_t *end, word *v)
{
    add(w, list, end, v, 1);
}
#endif

/* List the rows of the inputs whose digit of a plane is -1, or else 1, from a group on, as many as
 * the list holds; returns the list's end. carry[] goes from each plane to the next one: planes must
 * be asked for in their order. */
static inline uint16_t *list_rows(unsigned planes, unsigned has_minus, unsigned groups,
                                  const word **plane, word *carry, unsigned *group, int negative,
                                  uint16_t *list)
{
    const uint16_t *full = list + (LIST - MLP_LANES);
    const word *x = *plane;
    unsigned g = *group, start = g * MLP_LANES * ROW_BYTES;
    for (; g < groups; g++, x += planes, start += MLP_LANES * ROW_BYTES) {
        word digit = x[0] ^ carry[g];
        unsigned row = start;
        if (!digit)
            continue;
        if (LIST < MLP_MAX_INPUTS && list > full)
            break;
        word minus = has_minus ? digit & x[1] : 0;
        word selected = negative ? minus : digit ^ minus;
        carry[g] = (word)((carry[g] & (word)~digit) | minus);
#if MLP_LANES == 16                         /* AVR shifts one byte by one place at a time */
        UNROLL
        for (unsigned byte = 0; byte < MLP_LANES / 8; byte++, row += 8 * ROW_BYTES) {
            uint8_t bits = (uint8_t)(selected >> (8 * byte));
            uint16_t at = (uint16_t)row;
            for (; bits; bits >>= 1, at = (uint16_t)(at + ROW_BYTES))
                if (bits & 1)
                    *list++ = at;
        }
#else
        while (selected) {
            if (MLP_LANES < 32)
                for (; !(selected & 1); row += ROW_BYTES)
                    selected = (word)(selected >> 1);
            UNROLL
            for (unsigned half = MLP_LANES < 32 ? 0 : MLP_LANES / 2; half; half /= 2)
                if (!(selected & (word)(((word)1 << half) - 1))) {
                    selected = (word)(selected >> half);
                    row += half * ROW_BYTES;
                }
            *list++ = (uint16_t)row;
            selected = (word)(selected >> 1);
            row += ROW_BYTES;
        }
#endif
    }
    *plane = x;
    *group = g;
    return list;
}

/* The planes v as sums of the layer: v = start + x @ (w + MLP_OFFSET); returns the constant, equal
 * for all outputs, that makes it the accumulator: v + constant modulo 2^planes. */
static uint32_t accumulate(const struct mlp_layer *layer, const word *x, word *v)
{
    uint16_t list[LIST + 1];
    word carry[MLP_MAX_GROUPS];
    unsigned size = layer->sums;
    const unsigned planes = PLANES(layer), has_minus = HAS_MINUS(layer), groups = layer->groups;
    const unsigned digits = layer->code_bits + has_minus;
    uint32_t sum = 0;
    for (unsigned k = 0; k < size; k++)
        v[k] = (word)(FLASH(layer->start + k) ^ (has_minus ? (word)~(word)0 : 0));
    for (int negative = (int)has_minus; negative >= 0; negative--) {
        for (unsigned g = 0; g < groups; g++)
            carry[g] = 0;
        for (unsigned plane = 0; plane < digits; plane++) {
            const word *from = x + plane;
            unsigned group = 0;
            do {
                uint16_t *end = list_rows(planes, has_minus, groups, &from, carry, &group,
                                          negative, list);
                const word *w = layer->w;
                COUNT count = (COUNT)(end - list) << plane;
                sum = negative ? sum - count : sum + count;
                if (end == list)
                    continue;
                *end++ = layer->none;           /* one too many, where the number was even */
#ifdef MLP_NARROW
                if (layer->narrow) {
                    add_narrow_rows(w, list, end, v + plane + STEP);
                    continue;
                }
#endif
                for (unsigned at = plane + STEP; at < size; at += layer->planes, w += layer->rows)
                    add_rows(w, list, end, v + at);
            } while (LIST < MLP_MAX_INPUTS && group < groups);
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
        carry = add_bit(&v[k], (word)(0 - (constant & 1)), carry);
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
    if (ZEROS)
        x[MLP_QBITS] = x[MLP_QBITS + 1] = 0;
}

/* The codes of a window of the image in planes: its bytes, or means of 2 x 2 of them, rounded half
 * to even. */
static void read_codes(const uint8_t *image, unsigned rows, unsigned width, word *x,
                       unsigned groups)
{
    word bit = 1;
    for (unsigned k = 0; k < groups * CODE_PLANES; k++)
        x[k] = 0;
    for (; rows; rows--, image += MLP_LINE - (MLP_MEAN ? 2 : 1) * width)
        for (unsigned i = 0; i < width; i++, image += MLP_MEAN ? 2 : 1) {
            unsigned code = image[0];
            if (MLP_MEAN) {
                code += (unsigned)image[1] + image[MLP_MEAN] + image[MLP_MEAN + 1];
                code = (code + 1 + (code >> 2 & 1)) >> 2;
            }
            uint8_t bits = (uint8_t)code;
            for (word *plane = x; bits; plane++, bits >>= 1)
                if (bits & 1)
                    *plane |= bit;
            bit = (word)(bit << 1);
            if (!bit) {
                bit = 1;
                x += CODE_PLANES;
            }
        }
}

#ifdef MLP_MAPS
/* Copy `count` codes, from the at-th of a line on, to the to_at-th of others, which are 0 or the
 * same; there a group of lanes has `more` planes beside the codes'. */
static void copy_codes(const word *from, unsigned at, word *to, unsigned to_at, unsigned more,
                       unsigned count)
{
    from += at / MLP_LANES * MLP_QBITS;
    to += to_at / MLP_LANES * MLP_QBITS + (more ? to_at / MLP_LANES * ZEROS : 0);
    at %= MLP_LANES;
    to_at %= MLP_LANES;
    while (count) {
        unsigned size = MLP_LANES - (at > to_at ? at : to_at);
        size = size < count ? size : count;
        word mask = (word)((word)((word)~(word)0 >> (MLP_LANES - size)) << to_at);
        if (at > to_at)
            for (unsigned k = 0; k < MLP_QBITS; k++)
                to[k] |= from[k] >> (at - to_at) & mask;
        else
            for (unsigned k = 0; k < MLP_QBITS; k++)
                to[k] |= (word)(from[k] << (to_at - at)) & mask;
        count -= size;
        at += size;
        to_at += size;
        if (at == MLP_LANES) {
            at = 0;
            from += MLP_QBITS;
        }
        if (to_at == MLP_LANES) {
            to_at = 0;
            to += MLP_QBITS + more;
        }
    }
}

/* best = the larger of best and the codes, lane by lane. */
static void take_largest(word *best, const word *codes)
{
    word larger = 0, equal = (word)~(word)0;
    for (int k = MLP_QBITS - 1; k >= 0; k--) {
        word differ = best[k] ^ codes[k];
        larger |= equal & differ & codes[k];
        equal &= (word)~differ;
    }
    for (int k = 0; k < MLP_QBITS; k++)
        best[k] ^= (best[k] ^ codes[k]) & larger;
}

/* Lines of a map that a layer keeps, one after the other, in a circle. */
struct lines {
    word *first;
    uint16_t oldest;                            /* of a circle that is full, the next to be lost */
    uint16_t missing;                           /* until the next row of its windows is whole */
};

/* The codes of the patch at a place of a row of windows, `down` lines below the first. */
static void read_patch(const struct mlp_layer *layer, const uint8_t *image,
                       const struct lines *lines, unsigned down, unsigned place, word *x)
{
    if (layer == mlp_layers) {
        for (; down; down--)
            image += MLP_LINE;
        read_codes(image + (MLP_MEAN ? 2 : 1) * place, layer->lines, layer->width, x,
                   layer->groups);
        return;
    }
    unsigned line = lines->oldest;
    const unsigned planned = layer->planned;    /* x may alias *layer, to a compiler */
    for (unsigned k = 0; k < planned; k++)
        x[k] = 0;
    for (unsigned row = 0, at = 0; row < layer->lines + down; row++) {
        if (row >= down) {
            copy_codes(lines->first + line, place, x, at, ZEROS, layer->width);
            at += layer->width;
        }
        line += layer->line;
        line = line < layer->kept ? line : 0;
    }
}

/* A row of a convolution's outputs, pooled where it is, to the codes from to_at on. */
static void convolve(const struct mlp_layer *layer, const uint8_t *image,
                     const struct lines *lines, word *to, unsigned to_at, word *x)
{
    word best[MLP_MAX_BLOCKS * MLP_QBITS + ZEROS], *codes = x, *v = x + MLP_X_WORDS;
    unsigned at = 0, place = 0;
    for (unsigned set = 0; set < layer->sets; set++) {
        for (unsigned down = 0; down < layer->high; down += layer->down)
            for (unsigned across = 0; across < layer->wide; across += layer->across) {
                read_patch(layer, image, lines, down, place + across, x);
                uint32_t constant = accumulate(layer, x, v);
                const word *places = layer->places;
                word *block = best;
                for (word *sum = v; sum < v + layer->sums; sum += layer->planes) {
                    requantize(layer, places, constant, sum, down | across ? codes : block);
                    if (down | across)
                        take_largest(block, codes);
                    places += layer->spread;
                    block += MLP_QBITS;
                }
            }
        if (layer->pieces) {                    /* positions of one pooled window in a word */
            for (int k = 0; k < MLP_QBITS; k++)
                codes[k] = (word)(best[k] >> layer->piece);
            take_largest(best, codes);
            for (unsigned i = 0, from = 0, where = to_at + at; i < layer->pieces; i++) {
                copy_codes(best, from, to, where, 0, layer->piece);
                from += 2 * layer->piece;
                where += layer->piece;
            }
        } else
            copy_codes(best, 0, to, to_at + at, 0, layer->piece);
        at += layer->step;                      /* the last set overlaps where they don't fit */
        at = at < layer->last ? at : layer->last;
        place += layer->skip;
        place = place < layer->end ? place : layer->end;
    }
}

/* All convolutions, a line of the image at a time; x gets the codes of the layer after them. */
static const struct mlp_layer *run_maps(const uint8_t *image, word *x)
{
    word maps[MLP_MAP_WORDS], *first = maps;
    struct lines lines[MLP_CONVOLUTIONS];       /* each convolution's outputs */
    const struct mlp_layer *layer;
    unsigned flat = 0;
    for (unsigned i = 0; i < MLP_CONVOLUTIONS; i++) {
        layer = mlp_layers + i + 1;
        lines[i].first = first;
        lines[i].oldest = 0;
        lines[i].missing = (uint16_t)(layer->lines + layer->high - layer->down);
        first += layer->kept;
    }
    for (word *k = first - layer->kept; k < first; k++)
        *k = 0;                                 /* the first that is dense has one long line */
    for (unsigned row = 0; row < MLP_ROWS; row++, image += MLP_DOWN)
        for (unsigned i = 0; i < MLP_CONVOLUTIONS; i++) {
            const struct lines *from = i ? lines + i - 1 : lines;
            struct lines *next = lines + i;
            word *to = next->first + next->oldest;
            layer = mlp_layers + i;
            if (i + 1 == MLP_CONVOLUTIONS) {
                convolve(layer, image, from, to, flat, x);
                flat += layer->codes;
                break;
            }
            for (unsigned k = 0; k < layer[1].line; k++)
                to[k] = 0;
            convolve(layer, image, from, to, 0, x);
            next->oldest = (uint16_t)(next->oldest + layer[1].line);
            if (next->oldest == layer[1].kept)
                next->oldest = 0;
            if (--next->missing)
                break;
            next->missing = layer[1].high;
        }
    layer = mlp_layers + MLP_CONVOLUTIONS;
    for (unsigned k = 0; k < layer->planned; k++)
        x[k] = 0;
    copy_codes(lines[MLP_CONVOLUTIONS - 1].first, 0, x, 0, ZEROS, flat);
    return layer;
}
#endif

int mlp_predict(const uint8_t image[MLP_INPUTS], int32_t logits[MLP_CLASSES])
{
    word x[MLP_X_WORDS + MLP_MAX_PLANES], *v = x + MLP_X_WORDS, lane = 1;
    uint32_t constant;
    int best = 0;
#ifdef MLP_MAPS
    const struct mlp_layer *layer = run_maps(image + MLP_START, x);
#else
    const struct mlp_layer *layer = mlp_layers;
    read_codes(image + MLP_START, MLP_ROWS, MLP_WIDTH, x, MLP_MAX_GROUPS);
#endif
    for (;; layer++) {
        constant = accumulate(layer, x, v);
        if (!layer->shift)
            break;
        const word *places = layer->places;
        word *codes = x;
        for (word *sum = v; sum < v + layer->sums; sum += layer->planes) {
            requantize(layer, places, constant, sum, codes);
            places += layer->spread;
            codes += PLANES(layer + 1);
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

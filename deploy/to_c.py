"""C99: the integers of a network as tables, the engine that runs them, programs to try it."""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

import integer
import plan
from deploy.windows import windows_of
from formats.checkpoint import Facts

# Bits of the field that a weight takes: powers of two, so that no field straddles a word.
FIELD_BITS = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
DENSE_TILE, CONV_TILE = 64, 16  # what engine.c's dot products fill the outputs up to
FRAMES = 256                    # bytes of stack besides the buffers; the tests measure less


def pack_words(w_q, bits):
    """Weight codes as the words that engine.c multiplies in plain C.

    Args:
      w_q: int8 [I, O]; bits: of the weights.
    Returns:
      uint32 [I, words], words = ceil(O / fields): field k of word j is output k * words + j, so
      that each field feeds a contiguous run of accumulators. Codes are stored plus an offset; one
      bit stores 0 for -1 and 1 for +1.
    """
    width = FIELD_BITS[bits]
    fields = 32 // width
    inputs, outputs = w_q.shape
    words = math.ceil(outputs / fields)
    codes = np.zeros((inputs, fields * words), np.uint32)
    codes[:, :outputs] = w_q > 0 if bits == 1 else w_q.astype(np.int16) + 2 ** (bits - 1)
    codes = codes.reshape(inputs, fields, words)
    places = np.arange(0, 32, width, dtype=np.uint32)[:, None]
    return np.bitwise_or.reduce(codes << places, axis=1)


def lane_words(w_q, rows=1, tile=DENSE_TILE):
    """Weight codes as the words that engine.c gives to instructions that multiply bytes.

    Args:
      w_q: int8 [I, O].
      rows: of a patch, each filled up to fours: engine.c takes words of a map's line.
      tile: outputs are filled up to a multiple of it.
    Returns:
      uint32 [rows * ceil(I / rows / 4), O filled up]: four inputs' codes for one output in a word,
      the first in its lowest byte; zeros fill up.
    """
    outputs = w_q.shape[1]
    lines = w_q.view(np.uint8).reshape(rows, -1, outputs).astype(np.uint32)
    fours = np.pad(lines, ((0, 0), (0, -lines.shape[1] % 4), (0, -outputs % tile)))
    places = np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    return np.bitwise_or.reduce(fours.reshape(-1, 4, fours.shape[2]) << places, axis=1)


def array(kind, name, values, place=""):
    """A constant array as C text, at a place like flash, lines short enough to read."""
    text = [f"0x{v:x}" if "uint32_t" in kind else str(v) for v in values.ravel().tolist()]
    rows = [",".join(text[start:start + 8]) for start in range(0, len(text), 8)]
    return f"static const {kind} {name}[]{place} = {{\n" + ",\n".join(rows) + "\n};\n"


def plain_facts(network):
    """The Facts of a network of which nothing is known: classes 0, 1, ... and bytes."""
    return Facts(classes=plan.class_names(network.steps[-1].after[0]))


def title(network):
    """What the files of a network begin with."""
    return (f"nanoQAT {integer.name(network)}, {plan.describe(network.steps)}; "
            "made by main_export.py.")


def quote(name):
    """A text as a C string: UTF-8, with everything but plain letters as octal escapes."""
    plain = set(range(32, 127)) - set(b'"?\\')     # no quotes, trigraphs or escapes
    return '"' + "".join(chr(c) if c in plain else f"\\{c:03o}" for c in name.encode()) + '"'


ENCODE = """
#if defined __AVR__ && defined MLP_FLASH        /* of firmware, whose tables stay in flash */
#define MLP_FLOAT(address) pgm_read_float(address)
#else
#define MLP_FLOAT(address) (*(address))
#endif

uint8_t mlp_encode_one(float value, uint32_t feature)
{
    /* To memory: x87 and contraction would round later. */
    volatile float difference = value - MLP_FLOAT(mlp_low + feature);
    float code = difference * MLP_FLOAT(mlp_scale + feature), rest;
    if (!(code > 0.0f))
        return 0;
    if (code >= 255.0f)
        return 255;
    uint8_t whole = (uint8_t)code;
    rest = code - (float)whole;
    return (uint8_t)(whole + (rest > 0.5f || (rest == 0.5f && (whole & 1))));
}

void mlp_encode(const float features[MLP_INPUTS], uint8_t bytes[MLP_INPUTS])
{
    for (uint32_t i = 0, feature = 0; i < MLP_INPUTS; i++) {
        bytes[i] = mlp_encode_one(features[i], feature);
        feature = feature + 1 < MLP_FEATURES ? feature + 1 : 0;
    }
}
"""


def floats(name, values, place=""):
    """A constant array of float32, exact: hexadecimal."""
    text = [f"{float(value).hex()}f" for value in np.asarray(values, np.float32)]
    rows = [", ".join(text[start:start + 4]) for start in range(0, len(text), 4)]
    return f"static const float {name}[]{place} = {{\n" + ",\n".join(rows) + "\n};\n"


def _names_and_encoding(facts):
    """What mlp.c defines besides the engine: class names, and how features become bytes."""
    names = ",\n".join(f"    {quote(name)}" for name in facts.classes)
    text = f"\nconst char *const mlp_class_names[MLP_CLASSES] = {{\n{names}\n}};\n"
    return text + encoding(facts)


def encoding(facts, place=""):
    """The C text of mlp_encode, its tables at a place like flash; "" of images."""
    if facts.low is None:
        return ""
    scale = np.exp2(-facts.exponent.astype(np.float64))
    return (f"\n{floats('mlp_low', facts.low, place)}{floats('mlp_scale', scale, place)}{ENCODE}")


def _header(network, facts):
    """mlp.h: what a caller needs to know."""
    more = """
/* The logits of `count` images, one after the other. */
void mlp_predict_batch(const uint8_t *images, int32_t *logits, uint32_t count);

/* What the classes are called. */
extern const char *const mlp_class_names[MLP_CLASSES];
"""
    more += encoder(facts)
    return f"""/* {title(network)} */
#ifndef MLP_H
#define MLP_H
{declarations(network, more)}#endif
"""


def encoder(facts):
    """What a caller in C needs to make bytes of features; "" of images."""
    if facts.low is None:
        return ""
    return f"""
#define MLP_FEATURES {len(facts.low)}u      /* of a moment, or all */

/* The bytes that mlp_predict takes, from features as they were measured:
 * clip(round_half_even((v - low) * 2^-exponent), 0, 255); NaN gives 0. One: of feature 0, ... */
void mlp_encode(const float features[MLP_INPUTS], uint8_t bytes[MLP_INPUTS]);
uint8_t mlp_encode_one(float value, uint32_t feature);
"""


def declarations(network, more=""):
    """What a caller in C or C++ needs of any engine, and `more` of one of them."""
    return f"""#include <stdint.h>

#define MLP_INPUTS {plan.inputs(network.steps)}      /* bytes of an image */
#define MLP_CLASSES {network.steps[-1].after[0]}

#ifdef __cplusplus
extern "C" {{
#endif

/* The class of an image; logits receives the accumulators of the last layer. Reentrant. */
int mlp_predict(const uint8_t image[MLP_INPUTS], int32_t logits[MLP_CLASSES]);
{more}
#ifdef __cplusplus
}}
#endif
"""


class Sizes(NamedTuple):
    """What engine.c needs room for."""
    inputs: int                 # of a step with weights
    outputs: int
    codes: int                  # of a map or a layer; as many as a vector has, or gcc warns
    buffers: int                # of codes: a map is not made in its own place
    has_maps: bool              # steps from map to map; by weights: convolutions
    has_convolutions: bool


def _sizes(network):
    """The Sizes of a network."""
    steps = [step for step, _ in windows_of(network.steps)]
    shapes = [step.weights for step in steps if step.has_weights]
    maps = sum(step.kind != "dense" for step in steps)
    return Sizes(max(i for i, _ in shapes), max(o for _, o in shapes),
                 max([16, *(math.prod(step.after) for step in steps[:-1])]),
                 1 if maps < 2 else 2, maps > 0, plan.convolves(steps))


def _weights(network, facts):
    """(mlp_weights.h: the tables, and what mlp.c needs to know; bytes of the packed tables)."""
    bits, sizes, layers = network.weight_bits, _sizes(network), list(network.layers)
    packed, lanes, rest, table, flash = [], [], [], [], 0
    for i, (step, window) in enumerate(windows_of(network.steps)):
        row = [step.before[-1], step.after[-1], 0, 0, 0]
        if step.has_weights:
            layer = layers.pop(0)
            words = pack_words(layer.w_q, bits)
            packed.append(array("uint32_t", f"mlp_w{i}", words))
            lanes.append(array("__attribute__((aligned(64))) uint32_t", f"mlp_w{i}", lane_words(
                layer.w_q, *(step.kernel[:1] or (1,)),
                CONV_TILE if step.kind == "conv" else DENSE_TILE)))
            # A convolution's are filled up as its weights are.
            more = (0, -len(layer.b_q) % CONV_TILE if step.kind == "conv" else 0)
            rest.append(array("int32_t", f"mlp_b{i}", np.pad(layer.b_q, more)))
            flash += words.nbytes + 4 * (len(layer.b_q) + more[1])
            row = [*layer.w_q.shape, f"mlp_w{i}", f"mlp_b{i}", 0]
            if layer.shift is not None:
                shift = np.pad(layer.shift, more, constant_values=1)
                rest.append(array("uint8_t", f"mlp_shift{i}", shift))
                row[4] = f"mlp_shift{i}"
                flash += len(shift)
        row += [0] * 8 if step.kind == "dense" else window
        row.append(int(step.kind == "max"))
        table.append(f"    {{{', '.join(map(str, row))}}}")
    rest.append(_names_and_encoding(facts))
    has = [f"#define MLP_{name}\n" for name, there in (
        ("MAPS", sizes.has_maps), ("CONVOLUTIONS", sizes.has_convolutions)) if there]
    return f"""/* {title(network)} */
{''.join(has)}#define MLP_STEPS {len(table)}
#define MLP_WEIGHT_BITS {bits}
#define MLP_FIELD_BITS {FIELD_BITS[bits]}
#define MLP_STEP {2 if bits == 1 else 1}      /* weight = MLP_STEP * field - MLP_OFFSET */
#define MLP_OFFSET {2 ** (bits - 1)}u
#define MLP_QMAX {integer.code_range(network.activation_bits, signed=False)[1]}u
#define MLP_MAX_INPUTS {sizes.inputs}
#define MLP_MAX_OUTPUTS {sizes.outputs}
#define MLP_MAX_CODES {sizes.codes}
#define MLP_BUFFERS {sizes.buffers}

struct mlp_step {{
    uint32_t inputs, outputs;           /* of a step without weights: channels */
    const uint32_t *w;
    const int32_t *b;
    const uint8_t *shift;
    /* Windows on a map, in bytes: where the first begins; a line of the map; from window to window,
     * down and across; then rows of a window, bytes of each, and how many windows there are. */
    uint32_t start, line, down, across, rows, width, high, wide;
    uint8_t is_max;
}};

#ifdef LANES                            /* bytes, four inputs in a word */
{''.join(lanes)}#else                                   /* fields of MLP_FIELD_BITS, one input's */
{''.join(packed)}#endif
{''.join(rest)}
static const struct mlp_step mlp_steps[MLP_STEPS] = {{
""" + ",\n".join(table) + "\n};\n", flash


def make_example(network):
    """uint8 [inputs]: an image to try, without data: half of it 0, the rest all kinds of bytes."""
    ramp = 97 * np.arange(plan.inputs(network.steps)) % 512
    return np.maximum(ramp - 256, 0).astype(np.uint8)


def _example(network, facts, image, features):
    """example.c: the least program, which is a test: an example and its logits by NumPy.

    Args:
      image: uint8 [inputs].
      features: float32 [inputs] that image encodes, or None.
    """
    logits = integer.make_engine(network, "numpy")(image[None])[0]
    given = array("uint8_t", "bytes", image)
    encode = ""
    if features is not None:
        given = f"{floats('features', features)}\n{array('uint8_t', 'coded', image)}"
        encode = """
    uint8_t bytes[MLP_INPUTS];
    mlp_encode(features, bytes);
    for (int i = 0; i < MLP_INPUTS; i++)
        wrong |= bytes[i] != coded[i];"""
    return f"""/* {title(network)}
 *
 * The least program, and a test vector: exits with 0 if the logits are right on this machine.
 *     cc -std=c99 -O3 mlp.c example.c -o example && ./example
 */
#include "mlp.h"

#include <stdio.h>

{given}
{array("int32_t", "expected", logits)}
int main(void)
{{
    int32_t logits[MLP_CLASSES];
    int wrong = 0, best;{encode}
    best = mlp_predict(bytes, logits);
    wrong |= best != {logits.argmax()};
    for (int o = 0; o < MLP_CLASSES; o++)
        wrong |= logits[o] != expected[o];
    printf("%s: %s\\n", mlp_class_names[best], wrong ? "WRONG" : "RIGHT");
    return wrong;
}}
"""


def export(network, facts=None, image=None, features=None):
    """The files of a C program and what the engine needs in plain C, as on a microcontroller.

    Args:
      network: integer.Network.
      facts: checkpoint.Facts: names and encoding; None: 0, 1, ... and bytes.
      image: uint8 [inputs] for example.c; None: made up.
      features: float32 [inputs], of which the image is the code; None of images.
    Returns:
      (files, flash, ram): {name: text}; bytes of constant tables, code on top; bytes of stack
      that mlp_predict needs at most, buffers and calls.
    """
    sizes, fields = _sizes(network), 32 // FIELD_BITS[network.weight_bits]
    facts = facts or plain_facts(network)
    image = make_example(network) if image is None else image
    weights, flash = _weights(network, facts)
    sums = 4 * fields * math.ceil(sizes.outputs / fields)
    ram = sums + sizes.buffers * sizes.codes + min(256, sizes.inputs) + FRAMES
    if sizes.has_convolutions:
        ram += sums + sizes.inputs
    folder = Path(__file__).parent
    return {"mlp.h": _header(network, facts), "mlp_weights.h": weights,
            "mlp.c": (folder / "engine.c").read_text("utf-8"),
            "classify.c": (folder / "classify.c").read_text("utf-8"),
            "example.c": _example(network, facts, image, features)}, flash, ram

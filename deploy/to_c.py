"""C99: the integers of a network as tables, the engine that runs them, and programs to try it."""
import math
from pathlib import Path

import numpy as np

import integer
import plan
from formats.checkpoint import Facts

# Bits of the field that a weight takes: powers of two, so that no field straddles a word.
FIELD_BITS = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
TILE = 64                       # what engine.c's dot product fills the outputs up to
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


def lane_words(w_q):
    """Weight codes as the words that engine.c gives to instructions that multiply bytes.

    Args:
      w_q: int8 [I, O].
    Returns:
      uint32 [ceil(I / 4), O filled up to TILE]: four inputs' codes for one output in a word, the
      first in its lowest byte; zeros fill up.
    """
    inputs, outputs = w_q.shape
    codes = np.zeros((math.ceil(inputs / 4), 4, TILE * math.ceil(outputs / TILE)), np.uint32)
    codes.reshape(-1, codes.shape[2])[:inputs, :outputs] = w_q.view(np.uint8)
    places = np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    return np.bitwise_or.reduce(codes << places, axis=1)


def _array(kind, name, values):
    """A constant array as C text, lines short enough to read."""
    text = [f"0x{v:x}" if "uint32_t" in kind else str(v) for v in values.ravel().tolist()]
    rows = [",".join(text[start:start + 8]) for start in range(0, len(text), 8)]
    return f"static const {kind} {name}[] = {{\n" + ",\n".join(rows) + "\n};\n"


def title(network):
    """What the files of a network begin with."""
    return (f"nanoQAT {integer.name(network)}, {plan.describe(network.steps)}; "
            "made by main_export.py.")


def pooling(network):
    """The line that has an engine pool the image, or none."""
    side = plan.pooled_side(network.steps)
    return "" if side == 28 else f"#define MLP_POOLED {side}      /* side of the pooled image */\n"


def _quote(name):
    """A text as a C string: UTF-8, with everything but plain letters as octal escapes."""
    plain = set(range(32, 127)) - set(b'"?\\')     # no quotes, trigraphs or escapes
    return '"' + "".join(chr(c) if c in plain else f"\\{c:03o}" for c in name.encode()) + '"'


ENCODE = """
/* Features become bytes: clip(round_half_even((v - low) * 2^-exponent), 0, 255); NaN gives 0. */
void mlp_encode(const float features[MLP_INPUTS], uint8_t bytes[MLP_INPUTS])
{
    for (uint32_t i = 0; i < MLP_INPUTS; i++) {
        /* To memory: x87 and contraction would round later. */
        volatile float difference = features[i] - mlp_low[i % MLP_FEATURES];
        float code = difference * mlp_scale[i % MLP_FEATURES], rest;
        uint8_t whole = 255;
        if (!(code > 0.0f))
            whole = 0;
        else if (code < 255.0f) {
            whole = (uint8_t)code;
            rest = code - (float)whole;
            whole = (uint8_t)(whole + (rest > 0.5f || (rest == 0.5f && (whole & 1))));
        }
        bytes[i] = whole;
    }
}
"""


def _floats(name, values):
    """A constant array of float32, exact: hexadecimal."""
    text = [f"{float(value).hex()}f" for value in np.asarray(values, np.float32)]
    rows = [", ".join(text[start:start + 4]) for start in range(0, len(text), 4)]
    return f"static const float {name}[] = {{\n" + ",\n".join(rows) + "\n};\n"


def _names_and_encoding(facts):
    """What mlp.c defines besides the engine: class names, and how features become bytes."""
    names = ",\n".join(f"    {_quote(name)}" for name in facts.classes)
    text = f"\nconst char *const mlp_class_names[MLP_CLASSES] = {{\n{names}\n}};\n"
    if facts.low is None:
        return text
    scale = np.exp2(-facts.exponent.astype(np.float64))
    return (f"{text}\n#define MLP_FEATURES {len(facts.low)}u\n{_floats('mlp_low', facts.low)}"
            f"{_floats('mlp_scale', scale)}{ENCODE}")


def _header(network, facts):
    """mlp.h: what a caller needs to know."""
    more = """
/* The logits of `count` images, one after the other. */
void mlp_predict_batch(const uint8_t *images, int32_t *logits, uint32_t count);

/* What the classes are called. */
extern const char *const mlp_class_names[MLP_CLASSES];
"""
    if facts.low is not None:
        more += """
/* The bytes that mlp_predict takes, from features as they were measured. */
void mlp_encode(const float features[MLP_INPUTS], uint8_t bytes[MLP_INPUTS]);
"""
    return f"""/* {title(network)} */
#ifndef MLP_H
#define MLP_H
{declarations(network, more)}#endif
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


def _weights(network, facts):
    """(mlp_weights.h: the tables, and what mlp.c needs to know; bytes of the packed tables)."""
    bits, sizes = network.weight_bits, plan.sizes(network.steps)
    packed, lanes, rest, table, flash = [], [], [], [], 0
    for i, layer in enumerate(network.layers):
        words = pack_words(layer.w_q, bits)
        packed.append(_array("uint32_t", f"mlp_w{i}", words))
        lanes.append(_array("__attribute__((aligned(64))) uint32_t", f"mlp_w{i}",
                            lane_words(layer.w_q)))
        rest.append(_array("int32_t", f"mlp_b{i}", layer.b_q))
        flash += words.nbytes + layer.b_q.nbytes
        shift = "0" if layer.shift is None else f"mlp_shift{i}"
        if layer.shift is not None:
            rest.append(_array("uint8_t", shift, layer.shift))
            flash += layer.shift.nbytes
        inputs, outputs = layer.w_q.shape
        table.append(f"    {{{inputs}, {outputs}, mlp_w{i}, mlp_b{i}, {shift}}}")
    rest.append(_names_and_encoding(facts))
    return f"""/* {title(network)} */
{pooling(network)}#define MLP_LAYERS {len(network.layers)}
#define MLP_FIELD_BITS {FIELD_BITS[bits]}
#define MLP_STEP {2 if bits == 1 else 1}      /* weight = MLP_STEP * field - MLP_OFFSET */
#define MLP_OFFSET {2 ** (bits - 1)}u
#define MLP_QMAX {integer.code_range(network.activation_bits, signed=False)[1]}u
#define MLP_MAX_INPUTS {max(sizes[:-1])}
#define MLP_MAX_OUTPUTS {max(sizes[1:])}
#define MLP_MAX_CODES {_max_codes(network)}

struct mlp_layer {{
    uint32_t inputs, outputs;
    const uint32_t *w;
    const int32_t *b;
    const uint8_t *shift;
}};

#ifdef LANES                            /* bytes, four inputs in a word */
{''.join(lanes)}#else                                   /* fields of MLP_FIELD_BITS, one input's */
{''.join(packed)}#endif
{''.join(rest)}
static const struct mlp_layer mlp_layers[MLP_LAYERS] = {{
""" + ",\n".join(table) + "\n};\n", flash


def _max_codes(network):
    """Codes that the engine keeps at a time; pooling makes codes of the pixels, too."""
    sizes = plan.sizes(network.steps)
    return max(sizes[1:] if plan.pooled_side(network.steps) == 28 else sizes)


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
    given = _array("uint8_t", "bytes", image)
    encode = ""
    if features is not None:
        given = f"{_floats('features', features)}\n{_array('uint8_t', 'coded', image)}"
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
{_array("int32_t", "expected", logits)}
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
    sizes, fields = plan.sizes(network.steps), 32 // FIELD_BITS[network.weight_bits]
    facts = facts or Facts(classes=tuple(map(str, range(sizes[-1]))))
    image = make_example(network) if image is None else image
    weights, flash = _weights(network, facts)
    sums = max(fields * math.ceil(outputs / fields) for outputs in sizes[1:])
    ram = 4 * sums + _max_codes(network) + min(256, max(sizes[:-1])) + FRAMES
    folder = Path(__file__).parent
    return {"mlp.h": _header(network, facts), "mlp_weights.h": weights,
            "mlp.c": (folder / "engine.c").read_text("utf-8"),
            "classify.c": (folder / "classify.c").read_text("utf-8"),
            "example.c": _example(network, facts, image, features)}, flash, ram

"""C99: one header of packed weights and one source file, the integers of deploy/engine.c."""
import math
from pathlib import Path

import numpy as np

import integer

# Bits of the field that a weight takes: powers of two, so that no field straddles a word.
FIELD_BITS = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


def pack_words(w_q, bits):
    """Weight codes as the words that engine.c multiplies.

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


def _array(kind, name, values):
    """A constant array as C text, lines short enough to read."""
    text = [f"0x{v:x}u" if kind == "uint32_t" else str(v) for v in values.ravel().tolist()]
    rows = [",".join(text[start:start + 8]) for start in range(0, len(text), 8)]
    return f"static const {kind} {name}[] = {{\n" + ",\n".join(rows) + "\n};\n"


def export(network):
    """The two files and what they need.

    Args:
      network: integer.Network.
    Returns:
      (files, flash, ram): {"mlp.h": text, "mlp.c": text}; bytes of constant tables; bytes of
      buffers, all on the stack. Code, return addresses and saved registers come on top.
    """
    bits, sizes = network.weight_bits, integer.sizes(network)
    fields = 32 // FIELD_BITS[bits]
    arrays, table, flash = [], [], 0
    for i, layer in enumerate(network.layers):
        words = pack_words(layer.w_q, bits)
        parts = [("uint32_t", f"mlp_w{i}", words), ("int32_t", f"mlp_b{i}", layer.b_q)]
        if layer.shift is not None:
            parts.append(("uint8_t", f"mlp_shift{i}", layer.shift.astype(np.uint8)))
        arrays += [_array(*part) for part in parts]
        flash += sum(values.nbytes for _, _, values in parts)
        shift = "0" if layer.shift is None else f"mlp_shift{i}"
        inputs, outputs = layer.w_q.shape
        table.append(f"    {{{inputs}, {outputs}, {words.shape[1]}, mlp_w{i}, mlp_b{i}, {shift}}}")
    max_sums = max(fields * math.ceil(outputs / fields) for outputs in sizes[1:])
    pixels = integer.pixels(network.input, sizes[0])
    pooled = "" if network.input == integer.IMAGE_SIDE else (
        f"#define MLP_POOLED {network.input}      /* side of the pooled image */\n")
    # Pooling makes codes of the pixels too, in the same buffer.
    max_inputs, max_codes = max(sizes[:-1]), max(sizes if pooled else sizes[1:])
    name = f"nanoQAT {integer.name(network)}, {'-'.join(map(str, sizes))}"
    header = f"""/* {name}; made by main_export.py. */
#ifndef MLP_H
#define MLP_H
#include <stdint.h>

#define MLP_INPUTS {pixels}      /* bytes of an image */
#define MLP_CLASSES {sizes[-1]}

/* The class of an image; logits receives the accumulators of the last layer. Reentrant. */
int mlp_predict(const uint8_t image[MLP_INPUTS], int32_t logits[MLP_CLASSES]);

#ifdef MLP_WEIGHTS                      /* mlp.c alone defines it */
{pooled}#define MLP_LAYERS {len(network.layers)}
#define MLP_FIELD_BITS {FIELD_BITS[bits]}
#define MLP_STEP {2 if bits == 1 else 1}      /* weight = MLP_STEP * field - MLP_OFFSET */
#define MLP_OFFSET {2 ** (bits - 1)}u
#define MLP_QMAX {integer.code_range(network.activation_bits, signed=False)[1]}u
#define MLP_MAX_INPUTS {max_inputs}
#define MLP_MAX_SUMS {max_sums}
#define MLP_MAX_CODES {max_codes}

struct mlp_layer {{
    uint32_t inputs, outputs, words;    /* words: 32-bit words of weights per input */
    const uint32_t *w;
    const int32_t *b;
    const uint8_t *shift;
}};

{''.join(arrays)}
static const struct mlp_layer mlp_layers[MLP_LAYERS] = {{
""" + ",\n".join(table) + "\n};\n#endif\n#endif\n"
    ram = 4 * max_sums + max_codes + 2 * (max_inputs + 1)
    source = (Path(__file__).parent / "engine.c").read_text("utf-8")
    return {"mlp.h": header, "mlp.c": source}, flash, ram

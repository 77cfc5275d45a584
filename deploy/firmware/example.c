/* A test vector: classifies one example and prints its class and RIGHT, or WRONG where an integer
 * differs from Python's; example.h has the example, its features if it is made of those. With
 * -DMLP_NO_FLOAT it begins with the bytes: Debian's compiler has no floats for RV32E. */
#include "console.h"
#include "example.h"

#ifndef __AVR__
#define pgm_read_byte(address) (*(address))
#define pgm_read_dword(address) (*(address))
#define pgm_read_float(address) (*(address))
#endif

int main(void)
{
    static uint8_t bytes[MLP_INPUTS];
    int32_t logits[MLP_CLASSES];
    char name[2] = {0, 0};
    int wrong = 0, best;
    for (uint16_t i = 0; i < MLP_INPUTS; i++)
        bytes[i] = pgm_read_byte(example_bytes + i);
#if defined MLP_FEATURES && !defined MLP_NO_FLOAT
    for (uint16_t i = 0, feature = 0; i < MLP_INPUTS; i++) {
        wrong |= bytes[i] != mlp_encode_one(pgm_read_float(example_features + i), feature);
        feature = (uint16_t)(feature + 1u < MLP_FEATURES ? feature + 1u : 0u);
    }
#endif
    best = mlp_predict(bytes, logits);
    for (int o = 0; o < MLP_CLASSES; o++)
        wrong |= logits[o] != (int32_t)pgm_read_dword(example_logits + o);
#ifdef __AVR__
    start_console();
#endif
    for (int i = 0; (*name = (char)pgm_read_byte(mlp_class_names[best] + i)); i++)
        write_text(name);
    write_text(wrong ? ": WRONG\n" : ": RIGHT\n");
#ifdef __AVR__
    for (;;)
        continue;
#else
    semihost(EXIT, (const void *)0x20026);
    return wrong;
#endif
}

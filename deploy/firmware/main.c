/* For Cortex-M and RISC-V in an emulator or under a debugger: reads images of MLP_INPUTS bytes from
 * the file images.bin by semihosting and prints the class of each, a line each. With -DMEASURE a
 * line is the class, the ticks it took and the logits; the last line the ticks of 100,000
 * instructions and how many bytes of stack were ever used. */
#include "console.h"

static uint8_t image[MLP_INPUTS];

#if defined MEASURE || MLP_CLASSES > 10
/* Decimal, without the division that small chips lack. */
static void print(int32_t number, char end)
{
    static const uint32_t powers[] = {1000000000, 100000000, 10000000, 1000000, 100000, 10000, 1000,
                                      100, 10, 1};
    char text[13], *at = text;
    uint32_t left = number < 0 ? 0 - (uint32_t)number : (uint32_t)number, digits = 0;
    if (number < 0)
        *at++ = '-';
    for (int i = 0; i < 10; i++) {
        char digit = '0';
        for (; left >= powers[i]; left -= powers[i])
            digit++;
        digits += digit > '0' || digits || i == 9;
        if (digits)
            *at++ = digit;
    }
    *at++ = end;
    *at = 0;
    write_text(text);
}
#else
static void print(int number, char end)
{
    const char text[] = {(char)('0' + number), end, 0};
    write_text(text);
}
#endif

#ifdef MEASURE
extern uint32_t bss_end[], stack_top[];

/* Instructions on RISC-V, steps of the system timer on Cortex-M; 24 bits of it. */
static uint32_t ticks(void)
{
#ifdef __riscv
    uint32_t count;
    __asm__ volatile("csrr %0, 0xb02" : "=r"(count));
    return count;
#else
    return 0 - *(volatile uint32_t *)0xe000e018;
#endif
}

static void start_ticks(void)
{
#ifndef __riscv
    *(volatile uint32_t *)0xe000e014 = 0xffffff;
    *(volatile uint32_t *)0xe000e018 = 0;
    *(volatile uint32_t *)0xe000e010 = 5;
#endif
}

static int32_t since(uint32_t start) { return (int32_t)((ticks() - start) & 0xffffff); }

static void take_100000_instructions(void)
{
    uint32_t left = 50000;
#ifdef __riscv
    __asm__ volatile("1: addi %0, %0, -1\n\tbnez %0, 1b" : "+r"(left));
#else
    __asm__ volatile(".syntax unified\n1: subs %0, %0, #1\n\tbne 1b" : "+l"(left) : : "cc");
#endif
}
#endif

int main(void)
{
    const struct { const char *name; intptr_t mode, length; } open = {"images.bin", 1, 10};
    const struct { intptr_t file; void *to; intptr_t count; } read = {
        semihost(OPEN, &open), image, MLP_INPUTS};
    int32_t logits[MLP_CLASSES];
#ifdef MEASURE
    uint32_t start, *painted = bss_end, *sp;
#ifdef __riscv
    __asm__ volatile("mv %0, sp" : "=r"(sp));
#else
    __asm__ volatile("mov %0, sp" : "=r"(sp));
#endif
    for (volatile uint32_t *word = bss_end; word < sp; word++)
        *word = 0xa5a5a5a5;
    start_ticks();
    while (!semihost(READ, &read)) {
        start = ticks();
        int best = mlp_predict(image, logits);
        int32_t taken = since(start);
        print(best, ' ');
        print(taken, ' ');
        for (int o = 0; o < MLP_CLASSES; o++)
            print(logits[o], o + 1 < MLP_CLASSES ? ' ' : '\n');
    }
    start = ticks();
    take_100000_instructions();
    print(since(start), ' ');
    while (*painted == 0xa5a5a5a5)
        painted++;
    print((int32_t)((char *)stack_top - (char *)painted), '\n');
#else
    while (!semihost(READ, &read))
        print(mlp_predict(image, logits), '\n');
#endif
    semihost(EXIT, (const void *)0x20026);
    return 0;
}

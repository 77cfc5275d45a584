/* What runs before main on Cortex-M and RISC-V: the stack, .data and .bss. */
#include <stdint.h>

extern uint32_t data_start[], data_end[], data_source[], bss_start[], bss_end[], stack_top[];
int main(void);
void reset(void);
void start(void);

void reset(void)
{
    const uint32_t *from = data_source;
    for (uint32_t *to = data_start; to < data_end; to++)
        *to = *from++;
    for (uint32_t *to = bss_start; to < bss_end; to++)
        *to = 0;
    main();
    for (;;)
        continue;
}

#ifdef __riscv
__attribute__((naked, section(".start"))) void start(void)
{
    __asm__ volatile("la sp, stack_top\n\tj reset");
}
#else
void start(void) { reset(); }                   /* where a debugger begins */
struct vectors { uint32_t *stack; void (*reset)(void); };
extern const struct vectors vectors;
__attribute__((section(".start"), used)) const struct vectors vectors = {stack_top, reset};
#endif

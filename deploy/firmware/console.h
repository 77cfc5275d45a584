/* Text out of a chip: by semihosting to an emulator or debugger; of an ATmega328P at 16 MHz by its
 * UART, 500,000 baud, 8N1. */
#include "mlp.h"

#ifdef __AVR__
#include <avr/io.h>
#include <avr/pgmspace.h>
#include <stdlib.h>

static void start_console(void)
{
    UBRR0 = 3;                                  /* 16 MHz / 8 / (3 + 1) */
    UCSR0A = 1 << U2X0;
    UCSR0B = (1 << RXEN0) | (1 << TXEN0);
}

static void write_text(const char *text)
{
    for (; *text; text++) {
        while (!(UCSR0A & (1 << UDRE0)))
            continue;
        UDR0 = (uint8_t)*text;
    }
}
#else
enum { OPEN = 1, WRITE0 = 4, READ = 6, EXIT = 0x18 };

static intptr_t semihost(intptr_t operation, const void *argument)
{
#ifdef __riscv
    register intptr_t a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(".balign 16\n\t.option push\n\t.option norvc\n\t"
                     "slli x0, x0, 0x1f\n\tebreak\n\tsrai x0, x0, 7\n\t.option pop"
                     : "+r"(a0) : "r"(a1) : "memory");
    return a0;
#else
    register intptr_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#endif
}

static inline void write_text(const char *text) { semihost(WRITE0, text); }
#endif

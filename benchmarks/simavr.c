/* Runs AVR firmware in simavr with its UART on a terminal, as a serial port.
 *     cc -O2 simavr.c -lsimavr -o simavr && ./simavr FIRMWARE.elf TERMINAL RAM_USED
 * RAM_USED: bytes of .data and .bss. Prints the cycles of each time that GPIOR0 is not 0; at the
 * end, when the terminal's other side is closed, the bytes of stack that were ever used.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <simavr/avr_uart.h>
#include <simavr/sim_avr.h>
#include <simavr/sim_elf.h>
#include <simavr/sim_io.h>

enum { GPIOR0 = 0x3e, RAM_START = 0x100, RAM_END = 0x900, PAINT = 0xa5, MHZ = 16 };

static avr_cycle_count_t began;
static int terminal, full;

static void on_mark(struct avr_t *avr, avr_io_addr_t address, uint8_t value, void *unused)
{
    (void)unused;
    avr->data[address] = value;
    if (value)
        began = avr->cycle;
    else if (began)
        printf("%llu\n", (unsigned long long)(avr->cycle - began));
}

static void on_output(struct avr_irq_t *irq, uint32_t value, void *unused)
{
    uint8_t byte = (uint8_t)value;
    (void)irq;
    (void)unused;
    if (write(terminal, &byte, 1) != 1)
        exit(1);
}

static void on_flow(struct avr_irq_t *irq, uint32_t value, void *is_full)
{
    (void)irq;
    if (value)
        full = is_full != NULL;
}

int main(int argc, char **argv)
{
    elf_firmware_t firmware;
    avr_t *avr = avr_make_mcu_by_name("atmega328p");
    uint32_t flags = 0, used, at;
    avr_irq_t *input;
    memset(&firmware, 0, sizeof firmware);
    if (argc != 4 || !avr || elf_read_firmware(argv[1], &firmware) ||
        (terminal = open(argv[2], O_RDWR | O_NOCTTY | O_NONBLOCK)) < 0) {
        fprintf(stderr, "error: usage: simavr FIRMWARE.elf TERMINAL RAM_USED\n");
        return 2;
    }
    avr_init(avr);
    avr->frequency = MHZ * 1000000;
    avr_load_firmware(avr, &firmware);
    used = RAM_START + (uint32_t)strtoul(argv[3], NULL, 10);
    memset(avr->data + used, PAINT, RAM_END - used);
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
    input = avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_INPUT);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUTPUT),
                            on_output, NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUT_XON),
                            on_flow, NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUT_XOFF),
                            on_flow, &full);
    avr_register_io_write(avr, GPIOR0, on_mark, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        uint8_t byte;
        for (int i = 0; i < 300; i++) {
            int state = avr_run(avr);
            if (state == cpu_Done || state == cpu_Crashed)
                return 1;
        }
        if (!full) {
            ssize_t got = read(terminal, &byte, 1);
            if (got == 1)
                avr_raise_irq(input, byte);
            else if (!got || (got < 0 && errno != EAGAIN))
                break;
        }
    }
    for (at = used; at < RAM_END && avr->data[at] == PAINT; at++)
        continue;
    printf("stack %u\n", (unsigned)(RAM_END - at));
    return 0;
}

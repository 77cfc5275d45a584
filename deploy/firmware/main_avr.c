/* For the ATmega328P at 16 MHz: receives images of MLP_INPUTS bytes at 500,000 baud, 8N1, and
 * answers each with a line: the class, then the logits. A line "ready" comes first. GPIOR0
 * is 1 while it classifies, for an emulator that counts the cycles. */
#include "console.h"

static uint8_t image[MLP_INPUTS];

static void print(int32_t number, const char *end)
{
    char text[12];
    write_text(ltoa(number, text, 10));
    write_text(end);
}

int main(void)
{
    start_console();
    write_text("ready\n");
    for (;;) {
        int32_t logits[MLP_CLASSES];
        for (uint8_t *byte = image; byte < image + MLP_INPUTS; byte++) {
            while (!(UCSR0A & (1 << RXC0)))
                continue;
            *byte = UDR0;
        }
        GPIOR0 = 1;
        int best = mlp_predict(image, logits);
        GPIOR0 = 0;
        print(best, " ");
        for (int o = 0; o < MLP_CLASSES; o++)
            print(logits[o], o + 1 < MLP_CLASSES ? " " : "\n");
    }
}

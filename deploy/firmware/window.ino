/* nanoQAT on an Arduino Uno: open this folder in the Arduino IDE and upload it.
 *
 * Reads MLP_FEATURES channels every PERIOD_MS, keeps a window of the last moments as bytes, and after
 * every STEP moments prints what the network takes the window for, at 115,200 baud. Write your own
 * read_channel: in the units and at the rate of the data that the network was trained on.
 */
#include "mlp.h"

#define MOMENTS (MLP_INPUTS / MLP_FEATURES)
#define STEP (MOMENTS > 1 ? MOMENTS / 2 : 1)    /* windows overlap by half */
#define PERIOD_MS 20

static uint8_t window[MLP_INPUTS];
static uint16_t moments;                        /* in the window so far */

static float read_channel(uint8_t channel) { return analogRead(A0 + channel); }

void setup()
{
    Serial.begin(115200);
    Serial.println(F("ready"));
}

void loop()
{
    static uint32_t next = millis();
    int32_t logits[MLP_CLASSES];
    char name[sizeof *mlp_class_names];
    while ((int32_t)(millis() - next) < 0)
        continue;
    next += PERIOD_MS;
    for (uint16_t channel = 0; channel < MLP_FEATURES; channel++)
        window[moments * MLP_FEATURES + channel] = mlp_encode_one(read_channel(channel), channel);
    if (++moments < MOMENTS)
        return;
    strcpy_P(name, mlp_class_names[mlp_predict(window, logits)]);
    Serial.println(name);
    moments = MOMENTS - STEP;
    memmove(window, window + STEP * MLP_FEATURES, moments * MLP_FEATURES);
}

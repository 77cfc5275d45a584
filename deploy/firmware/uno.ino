/* nanoQAT on an Arduino Uno: open this folder in the Arduino IDE and upload it.
 *
 * Serial port, 115,200 baud: after "ready" it takes images of MLP_INPUTS bytes and answers each
 * with a line: the class, the logits, and the microseconds that they took. The page that
 * `main_export.py web` writes can send it what is drawn there.
 */
#include "mlp.h"

static uint8_t image[MLP_INPUTS];

void setup()
{
    Serial.begin(115200);
    Serial.println(F("ready"));
}

void loop()
{
    int32_t logits[MLP_CLASSES];
    // After a second without a byte what came so far is dropped: the next image is whole again.
    if (Serial.readBytes(image, MLP_INPUTS) != MLP_INPUTS)
        return;
    uint32_t start = micros();
    int best = mlp_predict(image, logits);
    uint32_t taken = micros() - start;
    Serial.print(best);
    for (int o = 0; o < MLP_CLASSES; o++) {
        Serial.print(' ');
        Serial.print(logits[o]);
    }
    Serial.print(' ');
    Serial.println(taken);
}

/* Classify the images of an idx file: one class a line, or the accuracy against a file of labels.
 *
 *     cc -std=c99 -O3 -march=native mlp.c classify.c -o classify && ./classify IMAGES [LABELS]
 */
#include "mlp.h"

#include <stdio.h>
#include <stdlib.h>

static void fail(const char *path, const char *reason)
{
    fprintf(stderr, "error: %s %s\n", path, reason);
    exit(2);
}

/* Open an idx file of uint8 whose items have item_bytes each; returns their number. */
static uint32_t open_idx(const char *path, int rank, uint32_t item_bytes, FILE **file)
{
    uint8_t head[16];
    size_t head_bytes = 4 + 4 * (size_t)rank;
    uint64_t size[4] = {0, 1, 1, 1};
    long end;
    *file = fopen(path, "rb");
    if (!*file)
        fail(path, "can't be opened");
    if (fseek(*file, 0, SEEK_END) || (end = ftell(*file)) < 0 || fseek(*file, 0, SEEK_SET))
        fail(path, "is not a plain file");
    if (fread(head, 1, head_bytes, *file) != head_bytes)
        fail(path, "is truncated");
    if (head[0] || head[1] || head[2] != 8 || head[3] != rank)
        fail(path, "is not an uncompressed idx file of the right kind");
    for (int r = 0; r < rank; r++)
        size[r] = (uint32_t)head[4 + 4 * r] << 24 | (uint32_t)head[5 + 4 * r] << 16 |
                  (uint32_t)head[6 + 4 * r] << 8 | head[7 + 4 * r];
    if (size[1] * size[2] != item_bytes)
        fail(path, "holds images of the wrong size");
    if ((uint64_t)end != head_bytes + size[0] * item_bytes)
        fail(path, "is truncated, or longer than its header says");
    return (uint32_t)size[0];
}

int main(int argc, char **argv)
{
    FILE *images, *labels = NULL;
    uint8_t image[MLP_INPUTS], label;
    int32_t logits[MLP_CLASSES];
    uint32_t correct = 0, count;
    if (argc < 2 || argc > 3)
        fail("usage:", "classify IMAGES [LABELS], two idx files");
    count = open_idx(argv[1], 3, MLP_INPUTS, &images);
    if (argc == 3 && open_idx(argv[2], 1, 1, &labels) != count)
        fail(argv[2], "has another number of items than the images");
    for (uint32_t n = 0; n < count; n++) {
        if (fread(image, 1, MLP_INPUTS, images) != MLP_INPUTS ||
            (labels && fread(&label, 1, 1, labels) != 1))
            fail(argv[1], "or its labels can't be read");
        int best = mlp_predict(image, logits);
        if (labels)
            correct += best == label;
        else
            printf("%d\n", best);
    }
    if (labels && count)
        printf("accuracy %lu.%02lu %% (%lu of %lu)\n", (unsigned long)(100ull * correct / count),
               (unsigned long)(10000ull * correct / count % 100), (unsigned long)correct,
               (unsigned long)count);
    return 0;
}

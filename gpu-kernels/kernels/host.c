/* Runs the kernel's arithmetic on the host, block by block and phase by phase, for tests: batches come on standard input. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint8_t *written;
#define WEIR_WROTE(at) written[at]++
#include "host.h"

static void receive(void *to, size_t bytes) {
    if (bytes > 0 && fread(to, bytes, 1, stdin) != 1) {
        fprintf(stderr, "the batch on standard input ends too early\n");
        exit(2);
    }
}

static void *reserve(size_t bytes) {
    /* As a device's allocator: at a multiple of 256, so that the rows' alignment alone decides. */
    void *block = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (block == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
    return block;
}

/* A batch: images (u32), the tensor, then for each image its descriptor, the bytes of its three planes (u64 each) and
   the planes. The tensor's values are poisoned first. Answers with the tensor. */
int main(void) {
    uint32_t images;
    while (fread(&images, sizeof images, 1, stdin) == 1) {
        WeirTensor tensor;
        receive(&tensor, sizeof tensor);
        size_t bytes = (size_t)images * 3 * tensor.crop * tensor.crop * (tensor.element == WEIR_F16 ? 2 : 4);
        uint8_t *values = reserve(bytes);
        for (size_t at = 0; at < bytes; at++) {
            values[at] = 0xFF; /* NaN in both element types */
        }
        tensor.tensor = (uint64_t)(uintptr_t)values;
        size_t count = bytes / (tensor.element == WEIR_F16 ? 2 : 4);
        written = calloc(count > 0 ? count : 1, 1);
        if (written == NULL) {
            fprintf(stderr, "no memory for %zu bytes\n", count);
            exit(2);
        }
        for (uint32_t i = 0; i < images; i++) {
            WeirImage image;
            uint64_t sizes[3];
            receive(&image, sizeof image);
            receive(sizes, sizeof sizes);
            uint8_t *planes[3];
            for (int plane = 0; plane < 3; plane++) {
                /* malloc: the sanitizer then sees a read one byte behind the plane. */
                planes[plane] = malloc(sizes[plane] > 0 ? sizes[plane] : 1);
                if (planes[plane] == NULL) {
                    fprintf(stderr, "no memory for %zu bytes\n", (size_t)sizes[plane]);
                    exit(2);
                }
                receive(planes[plane], sizes[plane]);
                image.planes[plane] = (uint64_t)(uintptr_t)planes[plane];
            }
            uint32_t blocks = weir_tiles_across(tensor.crop) * weir_tiles_down(tensor.crop);
            for (uint32_t block = 0; block < blocks; block++) {
                run_block(&image, &tensor, block);
            }
            for (int plane = 0; plane < 3; plane++) {
                free(planes[plane]);
            }
        }
        for (size_t at = 0; at < count; at++) {
            if (written[at] != 1) {
                fprintf(stderr, "value %zu was written %d times\n", at, written[at]);
                exit(3);
            }
        }
        free(written);
        fwrite(values, 1, bytes, stdout);
        fflush(stdout);
        free(values);
    }
    return 0;
}

/* The kernel on the host: a block's phases, one after the other, each thread by thread. For tests. */
#ifndef WEIR_HOST_H
#define WEIR_HOST_H

#include "preprocess.h"

/* Not for several threads at once. */
static void run_block(const WeirImage *image, const WeirTensor *tensor, uint32_t block) {
    static WeirThread own[WEIR_THREADS];
    static WeirShared shared;
    const WeirTile tile = weir_tile(image, tensor->crop, block);
#define EACH(call)                                                                                                     \
    for (uint32_t thread = 0; thread < WEIR_THREADS; thread++) {                                                       \
        call;                                                                                                          \
    }
    EACH(weir_begin(image, tensor->crop, &tile, thread, &own[thread]))
    for (int32_t y = tile.first_row; y < tile.end_row; y += WEIR_STRIP) {
        EACH(weir_across_begin(&own[thread]))
        for (int32_t x = tile.first_column; x < tile.end_column; x += WEIR_CHUNK) {
            EACH(weir_stage(image, &tile, x, y, thread, &shared))
            EACH(weir_across(&tile, x, y, &shared, &own[thread]))
        }
        EACH(weir_share(&own[thread], &shared))
        EACH(weir_down(&tile, y, &shared, &own[thread]))
    }
    EACH(weir_finish(image, tensor, &tile, &own[thread]))
}

#endif

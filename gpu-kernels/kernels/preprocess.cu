/* The preprocess kernel: one launch for a batch. All arithmetic stands in preprocess.h; here are the barriers. */
#include <stdint.h>

#include "preprocess.h"

/* A grid of (tiles of a window, images) blocks of WEIR_THREADS threads. */
extern "C" __global__ void __launch_bounds__(WEIR_THREADS)
weir_preprocess(const WeirImage *__restrict__ images, const WeirTensor tensor) {
    __shared__ WeirShared shared;
    const WeirImage image = images[blockIdx.y];
    const uint32_t thread = threadIdx.x;
    const WeirTile tile = weir_tile(&image, tensor.crop, blockIdx.x);
    WeirThread own;
    weir_begin(&image, tensor.crop, &tile, thread, &own);
    for (int32_t y = tile.first_row; y < tile.end_row; y += WEIR_STRIP) {
        weir_across_begin(&own);
        for (int32_t x = tile.first_column; x < tile.end_column; x += WEIR_CHUNK) {
            weir_stage(&image, &tile, x, y, thread, &shared);
            __syncthreads();
            weir_across(&tile, x, y, &shared, &own);
            __syncthreads();
        }
        weir_share(&own, &shared);
        __syncthreads();
        /* No barrier below: the next strip's chunks have two before its rows are written over these. */
        weir_down(&tile, y, &shared, &own);
    }
    weir_finish(&image, &tensor, &tile, &own);
}

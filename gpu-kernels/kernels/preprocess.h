/* The arithmetic of the preprocess kernel, for the device and for host tests: where to read, what to weigh, where to write. */
#ifndef WEIR_PREPROCESS_H
#define WEIR_PREPROCESS_H

/*
 * What is computed stands in src/preprocess/mod.rs. A block of threads computes one tile of the window, in stored
 * coordinates, and turns it upright while it writes:
 *
 *     begin
 *     for each strip of source rows under the tile
 *         across_begin
 *         for each chunk of its columns
 *             stage | across |        a chunk goes to shared memory as packed pixels; each thread weighs those of
 *                                     one row and one output column
 *         share | down                the strip's rows, filtered across, are weighed into the outputs below
 *     finish
 *
 * A bar is a barrier of the block. Every function but weir_tile is one phase of one thread, and the threads of a phase
 * touch disjoint memory but for what they read only. So the host can run a phase thread by thread, then the next.
 *
 * Invariants:
 * - An input row is padded so that whole groups of four pixels can be read, and begins at a multiple of four bytes.
 * - Each output value is written by exactly one thread of one block.
 * - Positions are computed in double, since a long side may have more pixels than a float can count; weights in float.
 */

/* What a test counts: one call for each value that is written. */
#ifndef WEIR_WROTE
#define WEIR_WROTE(at)
#endif

#ifdef __CUDACC__
#define WEIR_FN static __device__ __forceinline__
#else
#include <stdint.h>
#define WEIR_FN static inline
#endif

/* Threads of a block, and what they share: one thread for each column of a tile and each row of a strip. */
#define WEIR_TILE_WIDTH 32
#define WEIR_TILE_HEIGHT 16
#define WEIR_STRIP 8
#define WEIR_CHUNK 320
#define WEIR_THREADS (WEIR_TILE_WIDTH * WEIR_STRIP)
/* Output rows of a thread. */
#define WEIR_OUTPUTS (WEIR_TILE_HEIGHT / WEIR_STRIP)

/* Layouts of an image in memory. */
#define WEIR_RGB 0u   /* plane 0: red, green, blue, interleaved */
#define WEIR_YCBCR 1u /* three planes, full range (JFIF); chroma of (x, y) at (x >> shift_x, y >> shift_y) */
#define WEIR_GREY 2u  /* plane 0 */

/* How the stored window is turned upright. */
#define WEIR_SWAP_SIDES 1u
#define WEIR_FLIP_COLUMNS 2u
#define WEIR_FLIP_ROWS 4u

/* Element types of the tensor. */
#define WEIR_F32 0u
#define WEIR_F16 1u

/* One image of a batch. As ImageDescriptor in src/preprocess/descriptor.rs. */
typedef struct {
    uint64_t planes[3];
    uint64_t resized_width;
    uint64_t resized_height;
    uint64_t left;
    uint64_t top;
    uint32_t pitches[3];
    uint32_t width;
    uint32_t height;
    uint32_t layout;
    uint32_t shift_x;
    uint32_t shift_y;
    uint32_t turn;
    uint32_t slot;
} WeirImage;

/* What is the same for all images of a batch. As TensorDescriptor in src/preprocess/descriptor.rs. */
typedef struct {
    uint64_t tensor;
    uint32_t crop;
    uint32_t element;
    float factor[3];
    float offset[3];
} WeirTensor;

/* The source pixels under one output position of an axis, and their weights: of the pixel first + k,
   max(0, 1 - |begin + k * step|) * scale. */
typedef struct {
    int32_t first;
    int32_t end;
    float begin;
    float step;
    float scale;
} WeirAxis;

/* A tile: its first position in the window, and the source pixels that it reads. */
typedef struct {
    uint32_t left;
    uint32_t top;
    int32_t first_column;
    int32_t end_column;
    int32_t first_row;
    int32_t end_row;
} WeirTile;

/* What the threads of a block share. */
typedef struct {
    uint32_t pixels[WEIR_STRIP][WEIR_CHUNK];
    float rows[3][WEIR_STRIP][WEIR_TILE_WIDTH];
} WeirShared;

/* What a thread keeps. */
typedef struct {
    uint32_t column;
    uint32_t row;
    WeirAxis across;
    WeirAxis down[WEIR_OUTPUTS];
    float row_sum[3];
    float sum[WEIR_OUTPUTS][3];
} WeirThread;

WEIR_FN float weir_weight(const WeirAxis *axis, int32_t k) {
    float distance = axis->begin + (float)k * axis->step;
    float weight = 1.0f - (distance < 0.0f ? -distance : distance);
    return weight > 0.0f ? weight : 0.0f;
}

/* The triangle filter at `position` of an axis that has `size` pixels and would have `resized` of them. Its support
   grows with the factor of reduction and is cut off at the borders, as Pillow's Resampling.BILINEAR does it. */
WEIR_FN WeirAxis weir_axis(uint64_t position, uint32_t size, uint64_t resized) {
    WeirAxis axis;
    double factor = (double)size / (double)resized;
    double support = factor > 1.0 ? factor : 1.0;
    double centre = ((double)position + 0.5) * factor;
    double first = centre - support + 0.5;
    double end = centre + support + 0.5;
    axis.first = first > 0.0 ? (int32_t)first : 0;
    axis.end = end < (double)size ? (int32_t)end : (int32_t)size;
    axis.begin = (float)(((double)axis.first + 0.5 - centre) / support);
    axis.step = (float)(1.0 / support);
    float sum = 0.0f;
    for (int32_t k = 0; k < axis.end - axis.first; k++) {
        sum += weir_weight(&axis, k);
    }
    axis.scale = 1.0f / sum;
    return axis;
}

WEIR_FN WeirAxis weir_column(const WeirImage *image, uint32_t column) {
    return weir_axis(image->left + column, image->width, image->resized_width);
}

WEIR_FN WeirAxis weir_row(const WeirImage *image, uint32_t row) {
    return weir_axis(image->top + row, image->height, image->resized_height);
}

WEIR_FN uint32_t weir_tiles_across(uint32_t crop) {
    return (crop + WEIR_TILE_WIDTH - 1) / WEIR_TILE_WIDTH;
}

WEIR_FN uint32_t weir_tiles_down(uint32_t crop) {
    return (crop + WEIR_TILE_HEIGHT - 1) / WEIR_TILE_HEIGHT;
}

WEIR_FN WeirTile weir_tile(const WeirImage *image, uint32_t crop, uint32_t block) {
    WeirTile tile;
    tile.left = block % weir_tiles_across(crop) * WEIR_TILE_WIDTH;
    tile.top = block / weir_tiles_across(crop) * WEIR_TILE_HEIGHT;
    uint32_t right = tile.left + WEIR_TILE_WIDTH < crop ? tile.left + WEIR_TILE_WIDTH : crop;
    uint32_t bottom = tile.top + WEIR_TILE_HEIGHT < crop ? tile.top + WEIR_TILE_HEIGHT : crop;
    tile.first_column = weir_column(image, tile.left).first & ~3;
    tile.end_column = weir_column(image, right - 1).end;
    tile.first_row = weir_row(image, tile.top).first;
    tile.end_row = weir_row(image, bottom - 1).end;
    return tile;
}

/* Positions beyond the window take the last one's pixels; nothing of theirs is written. */
WEIR_FN void weir_begin(const WeirImage *image, uint32_t crop, const WeirTile *tile, uint32_t thread, WeirThread *own) {
    own->column = thread % WEIR_TILE_WIDTH;
    own->row = thread / WEIR_TILE_WIDTH;
    uint32_t column = tile->left + own->column;
    own->across = weir_column(image, column < crop ? column : crop - 1);
    for (uint32_t k = 0; k < WEIR_OUTPUTS; k++) {
        uint32_t row = tile->top + own->row + k * WEIR_STRIP;
        own->down[k] = weir_row(image, row < crop ? row : crop - 1);
        own->sum[k][0] = own->sum[k][1] = own->sum[k][2] = 0.0f;
    }
}

WEIR_FN uint32_t weir_pack(uint32_t red, uint32_t green, uint32_t blue) {
    return red | green << 8 | blue << 16;
}

WEIR_FN uint32_t weir_level(float value) {
    float rounded = value + 0.5f;
    return rounded <= 0.0f ? 0u : rounded >= 255.0f ? 255u : (uint32_t)rounded;
}

/* Full-range YCbCr to RGB, after JFIF 1.02 (ITU-T T.871), to whole levels. */
WEIR_FN uint32_t weir_rgb(uint32_t luma, uint32_t blueness, uint32_t redness) {
    float y = (float)luma, cb = (float)blueness - 128.0f, cr = (float)redness - 128.0f;
    uint32_t red = weir_level(y + 1.402f * cr);
    uint32_t green = weir_level(y - 0.344136f * cb - 0.714136f * cr);
    uint32_t blue = weir_level(y + 1.772f * cb);
    return weir_pack(red, green, blue);
}

/* Four pixels of a row from column `x` on, a multiple of 4. */
WEIR_FN void weir_load(const WeirImage *image, uint32_t x, uint32_t y, uint32_t pixels[4]) {
    const uint8_t *row = (const uint8_t *)(uintptr_t)image->planes[0] + (uint64_t)y * image->pitches[0];
    if (image->layout == WEIR_RGB) {
        const uint32_t *words = (const uint32_t *)(row + 3 * (uint64_t)x);
        uint32_t a = words[0], b = words[1], c = words[2];
        pixels[0] = a & 0xFFFFFFu;
        pixels[1] = a >> 24 | (b & 0xFFFFu) << 8;
        pixels[2] = b >> 16 | (c & 0xFFu) << 16;
        pixels[3] = c >> 8;
        return;
    }
    uint32_t luma = *(const uint32_t *)(row + x);
    if (image->layout == WEIR_GREY) {
        for (uint32_t k = 0; k < 4; k++) {
            pixels[k] = (luma >> 8 * k & 0xFFu) * 0x010101u;
        }
        return;
    }
    uint64_t line = y >> image->shift_y;
    const uint8_t *blue = (const uint8_t *)(uintptr_t)image->planes[1] + line * image->pitches[1];
    const uint8_t *red = (const uint8_t *)(uintptr_t)image->planes[2] + line * image->pitches[2];
    for (uint32_t k = 0; k < 4; k++) {
        uint32_t at = (x + k) >> image->shift_x;
        pixels[k] = weir_rgb(luma >> 8 * k & 0xFFu, blue[at], red[at]);
    }
}

WEIR_FN void weir_across_begin(WeirThread *own) {
    own->row_sum[0] = own->row_sum[1] = own->row_sum[2] = 0.0f;
}

/* Brings the chunk at column `x` of the strip at row `y` to shared memory. */
WEIR_FN void weir_stage(const WeirImage *image, const WeirTile *tile, int32_t x, int32_t y, uint32_t thread, WeirShared *shared) {
    int32_t columns = tile->end_column - x < WEIR_CHUNK ? tile->end_column - x : WEIR_CHUNK;
    int32_t rows = tile->end_row - y < WEIR_STRIP ? tile->end_row - y : WEIR_STRIP;
    uint32_t groups = (uint32_t)(columns + 3) / 4;
    for (uint32_t at = thread; at < groups * (uint32_t)rows; at += WEIR_THREADS) {
        uint32_t row = at / groups, column = at % groups * 4;
        weir_load(image, (uint32_t)x + column, (uint32_t)y + row, &shared->pixels[row][column]);
    }
}

/* Weighs the thread's pixels of the chunk at column `x` of the strip at row `y`. */
WEIR_FN void weir_across(const WeirTile *tile, int32_t x, int32_t y, const WeirShared *shared, WeirThread *own) {
    const WeirAxis *axis = &own->across;
    int32_t first = axis->first > x ? axis->first : x;
    int32_t end = axis->end < x + WEIR_CHUNK ? axis->end : x + WEIR_CHUNK;
    if (y + (int32_t)own->row >= tile->end_row) {
        return;
    }
    const uint32_t *pixels = shared->pixels[own->row];
    for (int32_t at = first; at < end; at++) {
        float weight = weir_weight(axis, at - axis->first);
        uint32_t pixel = pixels[at - x];
        own->row_sum[0] += weight * (float)(pixel & 0xFFu);
        own->row_sum[1] += weight * (float)(pixel >> 8 & 0xFFu);
        own->row_sum[2] += weight * (float)(pixel >> 16 & 0xFFu);
    }
}

/* Shows the thread's filtered row to the others. */
WEIR_FN void weir_share(const WeirThread *own, WeirShared *shared) {
    for (uint32_t channel = 0; channel < 3; channel++) {
        shared->rows[channel][own->row][own->column] = own->row_sum[channel] * own->across.scale;
    }
}

/* Weighs the rows of the strip at row `y` into the thread's outputs. */
WEIR_FN void weir_down(const WeirTile *tile, int32_t y, const WeirShared *shared, WeirThread *own) {
    int32_t below = y + WEIR_STRIP < tile->end_row ? y + WEIR_STRIP : tile->end_row;
    for (uint32_t k = 0; k < WEIR_OUTPUTS; k++) {
        const WeirAxis *axis = &own->down[k];
        int32_t first = axis->first > y ? axis->first : y;
        int32_t end = axis->end < below ? axis->end : below;
        for (int32_t at = first; at < end; at++) {
            float weight = weir_weight(axis, at - axis->first);
            for (uint32_t channel = 0; channel < 3; channel++) {
                own->sum[k][channel] += weight * shared->rows[channel][at - y][own->column];
            }
        }
    }
}

/* IEEE 754 half precision, to nearest, ties to even; what is too large becomes infinite. */
WEIR_FN uint16_t weir_half(float value) {
#ifdef __CUDA_ARCH__
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    union {
        float value;
        uint32_t bits;
    } from = {value};
    uint32_t sign = from.bits >> 16 & 0x8000u, magnitude = from.bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00u);
    }
    if (magnitude >= 0x47800000u) {
        return (uint16_t)(sign | 0x7C00u);
    }
    uint32_t half, rest, middle;
    if (magnitude >= 0x38800000u) {
        half = (magnitude - 0x38000000u) >> 13;
        rest = magnitude & 0x1FFFu;
        middle = 0x1000u;
    } else {
        uint32_t shift = 126u - (magnitude >> 23);
        if (shift > 24u) {
            return (uint16_t)sign;
        }
        uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
        half = mantissa >> shift;
        rest = mantissa & ((1u << shift) - 1u);
        middle = 1u << (shift - 1u);
    }
    half += rest > middle || (rest == middle && (half & 1u));
    return (uint16_t)(sign | half);
#endif
}

/* Where the window's value at (column, row) stands in its plane once it is upright. */
WEIR_FN uint32_t weir_place(uint32_t turn, uint32_t crop, uint32_t column, uint32_t row) {
    uint32_t x = turn & WEIR_FLIP_COLUMNS ? crop - 1 - column : column;
    uint32_t y = turn & WEIR_FLIP_ROWS ? crop - 1 - row : row;
    return turn & WEIR_SWAP_SIDES ? x * crop + y : y * crop + x;
}

/* Normalises the thread's outputs and writes those that lie in the window. */
WEIR_FN void weir_finish(const WeirImage *image, const WeirTensor *tensor, const WeirTile *tile, const WeirThread *own) {
    uint32_t crop = tensor->crop, column = tile->left + own->column;
    for (uint32_t k = 0; k < WEIR_OUTPUTS; k++) {
        uint32_t row = tile->top + own->row + k * WEIR_STRIP;
        if (column >= crop || row >= crop) {
            continue;
        }
        uint64_t at = (uint64_t)image->slot * 3 * crop * crop + weir_place(image->turn, crop, column, row);
        for (uint32_t channel = 0; channel < 3; channel++, at += (uint64_t)crop * crop) {
            WEIR_WROTE(at);
            float value = own->sum[k][channel] * own->down[k].scale * tensor->factor[channel] + tensor->offset[channel];
            if (tensor->element == WEIR_F16) {
                ((uint16_t *)(uintptr_t)tensor->tensor)[at] = weir_half(value);
            } else {
                ((float *)(uintptr_t)tensor->tensor)[at] = value;
            }
        }
    }
}

#endif

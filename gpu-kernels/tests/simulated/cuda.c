/*
 * A simulated NVIDIA driver (libcuda.so.1) for tests on machines without a GPU: its GPUs' memory is the host's, each of its
 * streams is a thread that runs what was put on it a little later, and its kernel is the real one's arithmetic.
 *
 * It is strict where a real one would silently corrupt memory: an access out of a block, to a freed block, or to host memory
 * that is not pinned is a violation, which is counted and printed. Memory is poisoned when it is taken and when it goes back, so
 * that a missing wait shows in the results. Tests control it through the weir_simulated_ functions at the end.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "host.h"

enum { GPUS = 16, FAULTS = 64, CANARY = 64, FIRST_DEVICE = 7 };
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, DESTROYED = 709 };

typedef struct {
    int number, users, error, generation, slow_us;
    uint64_t used, limit, launches, images;
} Gpu;

typedef struct Block {
    uint8_t *start;
    size_t bytes;
    int pinned;
    Gpu *gpu;
    struct Block *next;
} Block;

typedef struct Op {
    void (*run)(struct Op *);
    Gpu *gpu;
    void *to, *arg;
    const void *from;
    size_t bytes;
    struct Event *event;
    uint64_t ticket;
    WeirTensor tensor;
    uint32_t grid_x, images;
    void (*call)(void *);
    struct Op *next;
} Op;

typedef struct Stream {
    Gpu *gpu;
    int generation, ending;
    uint64_t put, done;
    Op *first, *last;
    pthread_t thread;
} Stream;

typedef struct Event {
    Gpu *gpu;
    int generation;
    uint64_t recorded, passed; /* tickets */
    struct timespec at;
} Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t kernel_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int ready, violations, gpu_count = 2;
static Gpu gpus[GPUS];
static Block *blocks;
static struct { int gpu, code, sticky; long after; char call[40]; } faults[FAULTS];
static __thread Gpu *current;

static void violation(const char *what, const void *where) {
    fprintf(stderr, "simulated driver: %s (%p)\n", what, where);
    __atomic_add_fetch(&violations, 1, __ATOMIC_SEQ_CST);
}

/* The code that a test wants this call to return now; with the lock held. */
static int fault(Gpu *gpu, const char *call) {
    for (int i = 0; i < FAULTS; i++) {
        if (faults[i].code != 0 && faults[i].gpu == gpu->number && strcmp(faults[i].call, call) == 0) {
            if (faults[i].after-- > 0) {
                continue;
            }
            int code = faults[i].code;
            if (faults[i].sticky) {
                gpu->error = code;
            }
            faults[i].code = 0;
            return code;
        }
    }
    return 0;
}

/* Every call on a context begins so; with the lock held. */
static int enter(Gpu *gpu, const char *call) {
    if (!ready) {
        return NOT_INITIALIZED;
    }
    if (gpu == NULL) {
        return INVALID_CONTEXT;
    }
    int code = fault(gpu, call);
    return code != 0 ? code : gpu->error;
}

#define LOCKED(gpu, call, ...)                                                                                         \
    pthread_mutex_lock(&lock);                                                                                         \
    int code = enter(gpu, call);                                                                                       \
    if (code == 0) {                                                                                                   \
        __VA_ARGS__                                                                                                    \
    }                                                                                                                  \
    pthread_mutex_unlock(&lock);                                                                                       \
    return code

static Block *block_of(const void *at, size_t bytes) {
    const uint8_t *byte = at;
    for (Block *block = blocks; block != NULL; block = block->next) {
        if (byte >= block->start && byte + bytes <= block->start + block->bytes) {
            return block;
        }
    }
    return NULL;
}

static int valid(const void *at, size_t bytes, int pinned, Gpu *gpu, const char *what) {
    Block *block = block_of(at, bytes);
    if (block == NULL || block->pinned != pinned || (!pinned && block->gpu != gpu)) {
        violation(what, at);
        return 0;
    }
    return 1;
}

/* ---- driver and GPUs ---- */
int cuInit(unsigned flags) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < GPUS && !ready; i++) {
        gpus[i].number = i;
        gpus[i].limit = (uint64_t)1 << 30;
    }
    ready = 1;
    pthread_mutex_unlock(&lock);
    return flags != 0;
}
int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
int cuDeviceGetCount(int *count) {
    *count = gpu_count;
    return ready ? 0 : NOT_INITIALIZED;
}
int cuDeviceGet(int *device, int number) {
    *device = FIRST_DEVICE + number;
    return number >= 0 && number < gpu_count ? 0 : INVALID_DEVICE;
}
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, (size_t)length, "Simulated GPU %d", device - FIRST_DEVICE);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = gpus[device - FIRST_DEVICE].limit;
    return 0;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    const char *capability = getenv("WEIR_SIMULATED_CAPABILITY");
    *value = which != 75 ? 0 : capability != NULL ? atoi(capability) : 9;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    Gpu *gpu = &gpus[device - FIRST_DEVICE];
    *context = gpu;
    LOCKED(gpu, "cuDevicePrimaryCtxRetain", gpu->users++;);
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    Gpu *gpu = &gpus[device - FIRST_DEVICE];
    if (--gpu->users < 0) {
        violation("a context is released more often than retained", gpu);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuDevicePrimaryCtxReset_v2(int device) {
    pthread_mutex_lock(&lock);
    Gpu *gpu = &gpus[device - FIRST_DEVICE];
    for (Block *block = blocks; block != NULL; block = block->next) {
        if (block->gpu == gpu) {
            violation("memory outlives its context", block->start);
        }
    }
    int code = fault(gpu, "cuDevicePrimaryCtxReset");
    if (code == 0) {
        gpu->error = 0;
        gpu->generation++;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
int cuCtxGetCurrent(void **context) {
    *context = current;
    return ready ? 0 : NOT_INITIALIZED;
}
int cuCtxSetCurrent(void *context) {
    current = context;
    return 0;
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    LOCKED(current, "cuMemGetInfo", *total = current->limit; *free_bytes = current->limit - current->used;);
}

/* ---- memory ---- */
static int take(void **to, size_t bytes, int pinned, const char *call) {
    LOCKED(current, call, {
        if (!pinned && current->used + bytes > current->limit) {
            code = OUT_OF_MEMORY;
        } else {
            Block *block = calloc(1, sizeof *block);
            uint8_t *memory = aligned_alloc(256, (bytes + CANARY + 255) / 256 * 256);
            memset(memory, 0xA5, bytes);
            memset(memory + bytes, 0xC7, CANARY);
            *block = (Block){memory, bytes, pinned, current, blocks};
            blocks = block;
            current->used += pinned ? 0 : bytes;
            *to = memory;
        }
    });
}
static int give_back(void *at, int pinned) {
    pthread_mutex_lock(&lock);
    Block **link = &blocks;
    while (*link != NULL && (*link)->start != at) {
        link = &(*link)->next;
    }
    Block *block = *link;
    if (block == NULL || block->pinned != pinned) {
        violation("what is freed was not taken, or is freed twice", at);
        pthread_mutex_unlock(&lock);
        return INVALID_VALUE;
    }
    for (size_t i = 0; i < CANARY; i++) {
        if (block->start[block->bytes + i] != 0xC7) {
            violation("something was written behind a block", at);
            break;
        }
    }
    *link = block->next;
    block->gpu->used -= pinned ? 0 : block->bytes;
    int code = block->gpu->error;
    memset(block->start, 0xDD, block->bytes);
    free(block->start);
    free(block);
    pthread_mutex_unlock(&lock);
    return code;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    void *memory = NULL;
    int code = take(&memory, bytes, 0, "cuMemAlloc");
    *address = (uint64_t)(uintptr_t)memory;
    return code;
}
int cuMemFree_v2(uint64_t address) {
    return give_back((void *)(uintptr_t)address, 0);
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    (void)flags;
    return take(memory, bytes, 1, "cuMemHostAlloc");
}
int cuMemFreeHost(void *memory) {
    return give_back(memory, 1);
}
int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t bytes) {
    LOCKED(current, "cuMemsetD8", {
        if (valid((void *)(uintptr_t)address, bytes, 0, current, "memset out of a block")) {
            memset((void *)(uintptr_t)address, value, bytes);
        }
    });
}

/* ---- streams ---- */
static void *run_stream(void *argument) {
    Stream *stream = argument;
    unsigned seed = (unsigned)(uintptr_t)stream;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (stream->first == NULL && !stream->ending) {
            pthread_cond_wait(&changed, &lock);
        }
        Op *op = stream->first;
        int slow = stream->gpu->slow_us;
        pthread_mutex_unlock(&lock);
        if (op == NULL) {
            return NULL;
        }
        usleep((unsigned)(rand_r(&seed) % 100 + slow));
        op->run(op);
        pthread_mutex_lock(&lock);
        stream->first = op->next;
        if (stream->first == NULL) {
            stream->last = NULL;
        }
        stream->done++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        free(op);
    }
}
/* With the lock held. */
static void put(Stream *stream, Op filled) {
    Op *op = malloc(sizeof *op);
    *op = filled;
    op->gpu = stream->gpu;
    op->next = NULL;
    if (stream->last == NULL) {
        stream->first = op;
    } else {
        stream->last->next = op;
    }
    stream->last = op;
    stream->put++;
    pthread_cond_broadcast(&changed);
}
static int alive(Gpu *gpu, int generation) {
    return gpu->generation == generation ? 0 : DESTROYED;
}
int cuStreamCreate(void **to, unsigned flags) {
    (void)flags;
    LOCKED(current, "cuStreamCreate", {
        Stream *stream = calloc(1, sizeof *stream);
        stream->gpu = current;
        stream->generation = current->generation;
        pthread_create(&stream->thread, NULL, run_stream, stream);
        *to = stream;
    });
}
int cuStreamDestroy_v2(void *handle) {
    Stream *stream = handle;
    pthread_mutex_lock(&lock);
    while (stream->first != NULL) {
        pthread_cond_wait(&changed, &lock);
    }
    stream->ending = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return 0;
}
int cuStreamSynchronize(void *handle) {
    Stream *stream = handle;
    pthread_mutex_lock(&lock);
    int code = enter(stream->gpu, "cuStreamSynchronize");
    uint64_t until = stream->put;
    while (stream->done < until) {
        pthread_cond_wait(&changed, &lock);
    }
    code = code != 0 ? code : stream->gpu->error;
    pthread_mutex_unlock(&lock);
    return code != 0 ? code : alive(stream->gpu, stream->generation);
}
int cuCtxSynchronize(void) {
    /* Its streams are waited for one by one in the tests. */
    LOCKED(current, "cuCtxSynchronize", ;);
}

/* ---- work on streams ---- */
static void run_copy(Op *op) {
    pthread_mutex_lock(&lock);
    int lost = op->gpu->error;
    if (block_of(op->to, op->bytes) == NULL || block_of(op->from, op->bytes) == NULL) {
        violation("a copy runs after its memory was given back", op->to);
        lost = 1;
    }
    pthread_mutex_unlock(&lock);
    if (lost == 0) {
        memcpy(op->to, op->from, op->bytes);
    }
}
static int copy(const char *call, void *to, const void *from, size_t bytes, int up, Stream *stream) {
    LOCKED(stream->gpu, call, {
        const void *host = up ? from : to;
        const void *device = up ? to : from;
        int fine = valid(host, bytes, 1, stream->gpu, "host memory of a copy is not pinned");
        fine = valid(device, bytes, 0, stream->gpu, "a copy leaves its block") && fine;
        if (fine) {
            put(stream, (Op){.run = run_copy, .to = to, .from = from, .bytes = bytes});
        } else {
            code = INVALID_VALUE;
        }
    });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    return copy("cuMemcpyHtoDAsync", (void *)(uintptr_t)to, from, bytes, 1, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    return copy("cuMemcpyDtoHAsync", to, (void *)(uintptr_t)from, bytes, 0, stream);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *handle) {
    Stream *stream = handle;
    LOCKED(stream->gpu, "cuMemcpyDtoDAsync", {
        void *start = (void *)(uintptr_t)to;
        const void *source = (const void *)(uintptr_t)from;
        int fine = valid(start, bytes, 0, stream->gpu, "a copy leaves its block");
        if (valid(source, bytes, 0, stream->gpu, "a copy leaves its block") && fine) {
            put(stream, (Op){.run = run_copy, .to = start, .from = source, .bytes = bytes});
        } else {
            code = INVALID_VALUE;
        }
    });
}
static void run_fill(Op *op) {
    memset(op->to, (int)op->ticket, op->bytes);
}
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *handle) {
    Stream *stream = handle;
    LOCKED(stream->gpu, "cuMemsetD8Async", {
        if (valid((void *)(uintptr_t)address, bytes, 0, stream->gpu, "memset out of a block")) {
            put(stream, (Op){.run = run_fill, .to = (void *)(uintptr_t)address, .bytes = bytes, .ticket = value});
        } else {
            code = INVALID_VALUE;
        }
    });
}
static int readable(const WeirImage *image, Gpu *gpu) {
    uint32_t padded = (image->width + 3) / 4 * 4;
    int planes = image->layout == WEIR_YCBCR ? 3 : 1;
    int fine = 1;
    for (int plane = 0; plane < planes; plane++) {
        uint64_t rows = plane == 0 ? image->height : (image->height + (1u << image->shift_y) - 1) >> image->shift_y;
        uint64_t row = image->layout == WEIR_RGB ? 3ull * padded : padded >> (plane == 0 ? 0 : image->shift_x);
        uint64_t bytes = (rows - 1) * image->pitches[plane] + row;
        fine = valid((void *)(uintptr_t)image->planes[plane], bytes, 0, gpu, "an image leaves its block") && fine;
    }
    return fine;
}
static void run_kernel(Op *op) {
    pthread_mutex_lock(&lock);
    int lost = op->gpu->error;
    if (lost == 0 && fault(op->gpu, "kernel") != 0) {
        lost = 1;
    }
    const WeirImage *images = op->from;
    int fine = valid(images, op->images * sizeof *images, 0, op->gpu, "descriptors leave their block");
    for (uint32_t i = 0; i < op->images && fine && lost == 0; i++) {
        fine = readable(&images[i], op->gpu);
        uint64_t values = 3ull * op->tensor.crop * op->tensor.crop * (op->tensor.element == WEIR_F16 ? 2 : 4);
        fine = valid((void *)(uintptr_t)(op->tensor.tensor + images[i].slot * values), values, 0, op->gpu,
                     "the tensor leaves its block") && fine;
    }
    if (!fine) {
        op->gpu->error = ILLEGAL_ADDRESS;
    }
    op->gpu->launches++;
    op->gpu->images += op->images;
    pthread_mutex_unlock(&lock);
    if (!fine || lost != 0) {
        return;
    }
    pthread_mutex_lock(&kernel_lock);
    for (uint32_t i = 0; i < op->images; i++) {
        for (uint32_t block = 0; block < op->grid_x; block++) {
            run_block(&images[i], &op->tensor, block);
        }
    }
    pthread_mutex_unlock(&kernel_lock);
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *handle, void **parameters, void **extra) {
    Stream *stream = handle;
    LOCKED(stream->gpu, "cuLaunchKernel", {
        WeirTensor tensor;
        uint64_t descriptors;
        memcpy(&descriptors, parameters[0], sizeof descriptors);
        memcpy(&tensor, parameters[1], sizeof tensor);
        uint32_t tiles = weir_tiles_across(tensor.crop) * weir_tiles_down(tensor.crop);
        if (function != (void *)run_kernel || gx != tiles || gy == 0 || gz != 1 || bx != WEIR_THREADS || by != 1 ||
            bz != 1 || shared != 0 || extra != NULL) {
            violation("a launch of another shape than the kernel's", function);
            code = INVALID_VALUE;
        } else {
            put(stream, (Op){.run = run_kernel, .from = (void *)(uintptr_t)descriptors, .tensor = tensor,
                             .grid_x = gx, .images = gy});
        }
    });
}
int cuModuleLoadData(void **module, const void *image) {
    LOCKED(current, "cuModuleLoadData", {
        uint32_t magic;
        memcpy(&magic, image, sizeof magic);
        code = magic == 0xBA55ED50u ? 0 : 200;
        *module = current;
    });
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)run_kernel;
    return module != NULL && strcmp(name, "weir_preprocess") == 0 ? 0 : NOT_FOUND;
}
int cuModuleUnload(void *module) {
    return module != NULL ? 0 : INVALID_HANDLE;
}

/* ---- events ---- */
static void run_record(Op *op) {
    pthread_mutex_lock(&lock);
    op->event->passed = op->ticket;
    clock_gettime(CLOCK_MONOTONIC, &op->event->at);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}
static void run_wait(Op *op) {
    pthread_mutex_lock(&lock);
    while (op->event->passed < op->ticket) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}
int cuEventCreate(void **to, unsigned flags) {
    (void)flags;
    LOCKED(current, "cuEventCreate", {
        Event *event = calloc(1, sizeof *event);
        event->gpu = current;
        event->generation = current->generation;
        *to = event;
    });
}
int cuEventDestroy_v2(void *handle) {
    Event *event = handle;
    pthread_mutex_lock(&lock);
    while (event->passed < event->recorded) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
    /* Waits of streams for it may still stand in their queues: as with the real driver they stay valid. */
    return 0;
}
int cuEventRecord(void *handle, void *on) {
    Event *event = handle;
    Stream *stream = on;
    LOCKED(stream->gpu, "cuEventRecord", {
        if (event->gpu != stream->gpu) {
            code = INVALID_HANDLE;
        } else {
            put(stream, (Op){.run = run_record, .event = event, .ticket = ++event->recorded});
        }
    });
}
int cuStreamWaitEvent(void *on, void *handle, unsigned flags) {
    (void)flags;
    Stream *stream = on;
    Event *event = handle;
    LOCKED(stream->gpu, "cuStreamWaitEvent", {
        put(stream, (Op){.run = run_wait, .event = event, .ticket = event->recorded});
    });
}
int cuEventQuery(void *handle) {
    Event *event = handle;
    LOCKED(event->gpu, "cuEventQuery", code = event->passed < event->recorded ? NOT_READY : 0;);
}
int cuEventSynchronize(void *handle) {
    Event *event = handle;
    pthread_mutex_lock(&lock);
    int code = enter(event->gpu, "cuEventSynchronize");
    uint64_t until = event->recorded;
    while (event->passed < until) {
        pthread_cond_wait(&changed, &lock);
    }
    code = code != 0 ? code : event->gpu->error;
    pthread_mutex_unlock(&lock);
    return code != 0 ? code : alive(event->gpu, event->generation);
}
static int elapsed(float *ms, void *from, void *to) {
    Event *first = from;
    Event *second = to;
    *ms = (float)((double)(second->at.tv_sec - first->at.tv_sec) * 1e3 +
                  (double)(second->at.tv_nsec - first->at.tv_nsec) / 1e6);
    return 0;
}
int cuEventElapsedTime(float *ms, void *from, void *to) {
    return elapsed(ms, from, to);
}
int cuEventElapsedTime_v2(float *ms, void *from, void *to) {
    return elapsed(ms, from, to);
}

/* ---- for tests ---- */

/* Simulated libraries put their own work on a stream with this. */
static void run_call(Op *op) {
    op->call(op->arg);
}
int weir_simulated_cuda_enqueue(void *handle, void (*call)(void *), void *argument) {
    Stream *stream = handle;
    LOCKED(stream->gpu, "enqueue", put(stream, (Op){.run = run_call, .call = call, .arg = argument}););
}
/* Stands in for the engine's work. */
int weir_simulated_copy(void *handle, uint64_t to, uint64_t from, size_t bytes) {
    Stream *stream = handle;
    LOCKED(stream->gpu, "weir_simulated_copy", {
        int fine = valid((void *)(uintptr_t)to, bytes, 0, stream->gpu, "a copy leaves its block");
        if (fine && valid((void *)(uintptr_t)from, bytes, 0, stream->gpu, "a copy leaves its block")) {
            put(stream, (Op){.run = run_copy, .to = (void *)(uintptr_t)to, .from = (void *)(uintptr_t)from, .bytes = bytes});
        }
    });
}
/* A GPU's call fails with this code after so many that do not. Sticky: every call does until the context is reset. The call
   "kernel" fails when it runs. */
void weir_simulated_fail(int gpu, const char *call, long after, int code, int sticky) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FAULTS; i++) {
        if (faults[i].code == 0) {
            snprintf(faults[i].call, sizeof faults[i].call, "%s", call);
            faults[i].gpu = gpu;
            faults[i].after = after;
            faults[i].sticky = sticky;
            faults[i].code = code;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}
void weir_simulated_heal(int gpu) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < FAULTS; i++) {
        faults[i].code = faults[i].gpu == gpu ? 0 : faults[i].code;
    }
    pthread_mutex_unlock(&lock);
}
void weir_simulated_gpus(int count) {
    gpu_count = count < GPUS ? count : GPUS;
}
void weir_simulated_limit(int gpu, uint64_t bytes) {
    gpus[gpu].limit = bytes;
}
/* Every piece of work of a GPU takes so much longer. */
void weir_simulated_slow(int gpu, int us) {
    gpus[gpu].slow_us = us;
}
int weir_simulated_violations(void) {
    return __atomic_load_n(&violations, __ATOMIC_SEQ_CST);
}
uint64_t weir_simulated_launches(int gpu) {
    return __atomic_load_n(&gpus[gpu].launches, __ATOMIC_SEQ_CST);
}
uint64_t weir_simulated_images(int gpu) {
    return __atomic_load_n(&gpus[gpu].images, __ATOMIC_SEQ_CST);
}
/* Blocks of a GPU, and pinned ones, that were not given back. */
int weir_simulated_blocks(int gpu) {
    pthread_mutex_lock(&lock);
    int count = 0;
    for (Block *block = blocks; block != NULL; block = block->next) {
        count += block->gpu == &gpus[gpu];
    }
    pthread_mutex_unlock(&lock);
    return count;
}
int weir_simulated_users(int gpu) {
    return __atomic_load_n(&gpus[gpu].users, __ATOMIC_SEQ_CST);
}

/* Stands in for libnvjpeg.so.13 in tests: checks how it is called, and decodes in host memory through a function that the
 * test installs.
 *
 * A breach of nvJPEG's contract is refused with "invalid parameter" and kept for weir_simulated_violation(). Where the process
 * has weir_simulated_cuda_enqueue (a simulated CUDA driver), decoding is queued on its stream; else it is done within the call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED, INVALID_PARAMETER, BAD_JPEG, NOT_SUPPORTED, ALLOCATOR_FAILURE, EXECUTION_FAILED,
       ARCH_MISMATCH, INTERNAL_ERROR, NOT_IMPLEMENTED, INCOMPLETE_BITSTREAM };
enum { GPU_HYBRID = 2, HARDWARE = 3, OUTPUT_YUV = 1 };
enum { CSS_444 = 0, CSS_422, CSS_420, CSS_440, CSS_GRAY = 6, CSS_UNKNOWN = -1 };

typedef struct { unsigned char *channel[4]; size_t pitch[4]; } image_t;
/* Writes the planes of a JPEG, `pitches` bytes a row; returns a status. */
typedef int (*decoder_t)(const unsigned char *jpeg, size_t length, unsigned char *const *planes, const size_t *pitches);
typedef int (*enqueue_t)(void *stream, void (*function)(void *), void *argument);

typedef struct { int code, width, height, components, factors[4], scans; } frame_t;
/* Objects stay allocated when destroyed, so that their use afterwards is seen. */
typedef struct object { int kind; struct object *of; int backend, children, batch, pending; frame_t frame; } object_t;
enum { HANDLE = 0x4a50, STATE, STREAM, DESTROYED };

static decoder_t decoder;
static int live, initialisations, failed_jobs;
static pthread_mutex_t calls = PTHREAD_MUTEX_INITIALIZER;
static int engines = 1, cores = 4;
static int fail_status, fail_in;
static char fail_call[64], violation[160];

void weir_simulated_set_decoder(decoder_t function) { decoder = function; }
/* Handles, states and streams that were made and not destroyed. */
int weir_simulated_live(void) { return __atomic_load_n(&live, __ATOMIC_SEQ_CST); }
/* How often a state was initialised for a batch. */
int weir_simulated_initialisations(void) { return initialisations; }
/* Images whose decoding failed after it was queued. */
int weir_simulated_failed_jobs(void) { return __atomic_load_n(&failed_jobs, __ATOMIC_SEQ_CST); }
/* The first breach of the contract, or NULL. */
const char *weir_simulated_violation(void) { return violation[0] ? violation : NULL; }
/* JPEG engines of the GPU; 0 for one without. */
void weir_simulated_set_engines(int count, int cores_each) { engines = count; cores = cores_each; }
/* The `nth` call of `call` from now on, counted from 1, returns `status`. */
void weir_simulated_fail(const char *call, int nth, int status) {
    snprintf(fail_call, sizeof fail_call, "%s", call);
    fail_in = nth;
    fail_status = status;
}

static int breach(const char *call, const char *what) {
    if (!violation[0]) snprintf(violation, sizeof violation, "%s: %s", call, what);
    return INVALID_PARAMETER;
}

static int leave(int status) { pthread_mutex_unlock(&calls); return status; }

/* Every function begins so: threads with handles of their own take turns, and the failure comes that the test asked for. */
#define ENTER() do { \
    pthread_mutex_lock(&calls); \
    if (fail_in > 0 && !strcmp(__func__, fail_call) && --fail_in == 0) return leave(fail_status); \
} while (0)
#define REQUIRE(condition, what) do { if (!(condition)) return leave(breach(__func__, what)); } while (0)
#define REQUIRE_KIND(object, wanted) REQUIRE((object) && (object)->kind == (wanted), "not a live " #wanted)

static int make(object_t *of, int kind, void **to) {
    object_t *made = calloc(1, sizeof *made);
    if (!made) return ALLOCATOR_FAILURE;
    made->kind = kind;
    made->of = of;
    if (of) of->children++;
    __atomic_add_fetch(&live, 1, __ATOMIC_SEQ_CST);
    *to = made;
    return SUCCESS;
}

static int destroy(object_t *object) {
    object->kind = DESTROYED;
    if (object->of) object->of->children--;
    __atomic_sub_fetch(&live, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

/* The frame header, and how many scans follow. */
static int parse(const unsigned char *jpeg, size_t length, frame_t *frame) {
    size_t at = 2;
    memset(frame, 0, sizeof *frame);
    if (length < 4 || jpeg[0] != 0xFF || jpeg[1] != 0xD8) return BAD_JPEG;
    while (at + 4 <= length) {
        int code = jpeg[at + 1];
        size_t body = (size_t)jpeg[at + 2] << 8 | jpeg[at + 3];
        if (jpeg[at] != 0xFF || body < 2 || at + 2 + body > length) return BAD_JPEG;
        const unsigned char *data = jpeg + at + 4;
        if (code >= 0xC0 && code <= 0xCF && code != 0xC4 && code != 0xC8 && code != 0xCC) {
            if (code > 0xC2 || data[0] != 8) return NOT_SUPPORTED;
            frame->code = code;
            frame->height = data[1] << 8 | data[2];
            frame->width = data[3] << 8 | data[4];
            frame->components = data[5];
            if (frame->components < 1 || frame->components > 4 || body != 8 + 3 * (size_t)data[5]) return BAD_JPEG;
            for (int i = 0; i < frame->components; i++) frame->factors[i] = data[7 + 3 * i];
        }
        if (code == 0xDA) {
            if (!frame->code) return BAD_JPEG;
            frame->scans = frame->code == 0xC2 || data[0] < frame->components ? 2 : 1;
            return SUCCESS;
        }
        at += 2 + body;
    }
    return INCOMPLETE_BITSTREAM;
}

static int subsampling(const frame_t *frame) {
    if (frame->components == 1) return CSS_GRAY;
    if (frame->components != 3 || frame->factors[1] != 0x11 || frame->factors[2] != 0x11) return CSS_UNKNOWN;
    switch (frame->factors[0]) {
    case 0x11: return CSS_444;
    case 0x21: return CSS_422;
    case 0x22: return CSS_420;
    case 0x12: return CSS_440;
    default: return CSS_UNKNOWN;
    }
}

static int supported(const object_t *handle, const frame_t *frame) {
    if (subsampling(frame) == CSS_UNKNOWN) return 0;
    return handle->backend != HARDWARE || (frame->code == 0xC0 && frame->scans == 1);
}

int nvjpegCreateEx(unsigned backend, void *device_memory, void *pinned_memory, unsigned flags, void **handle) {
    ENTER();
    REQUIRE(handle && !device_memory && !pinned_memory && !flags, "unexpected arguments");
    REQUIRE(backend == GPU_HYBRID || backend == HARDWARE, "unexpected backend");
    if (backend == HARDWARE && !engines) return leave(ARCH_MISMATCH);
    int status = make(NULL, HANDLE, handle);
    if (!status) ((object_t *)*handle)->backend = (int)backend;
    return leave(status);
}

int nvjpegDestroy(object_t *handle) {
    ENTER();
    REQUIRE_KIND(handle, HANDLE);
    REQUIRE(handle->children == 0, "a state or stream is left");
    return leave(destroy(handle));
}

int nvjpegGetHardwareDecoderInfo(object_t *handle, unsigned *count, unsigned *cores_each) {
    ENTER();
    REQUIRE_KIND(handle, HANDLE);
    if (!engines) return leave(NOT_IMPLEMENTED);
    *count = (unsigned)engines;
    *cores_each = (unsigned)cores;
    return leave(SUCCESS);
}

#define PAIR(make_name, destroy_name, wanted) \
    int make_name(object_t *handle, void **made) { \
        ENTER(); \
        REQUIRE_KIND(handle, HANDLE); \
        return leave(make(handle, wanted, made)); \
    } \
    int destroy_name(object_t *object) { \
        ENTER(); \
        REQUIRE_KIND(object, wanted); \
        REQUIRE(!__atomic_load_n(&object->pending, __ATOMIC_SEQ_CST), "its batch has not finished"); \
        return leave(destroy(object)); \
    }
PAIR(nvjpegJpegStateCreate, nvjpegJpegStateDestroy, STATE)
PAIR(nvjpegJpegStreamCreate, nvjpegJpegStreamDestroy, STREAM)

int nvjpegJpegStreamParseHeader(object_t *handle, const unsigned char *data, size_t length, object_t *stream) {
    ENTER();
    REQUIRE_KIND(handle, HANDLE);
    REQUIRE_KIND(stream, STREAM);
    REQUIRE(stream->of == handle && data, "unexpected arguments");
    int status = parse(data, length, &stream->frame);
    if (status) stream->frame.code = 0;
    return leave(status);
}

#define REQUIRE_PARSED(stream) REQUIRE_KIND(stream, STREAM); REQUIRE((stream)->frame.code, "nothing was parsed")

int nvjpegJpegStreamGetFrameDimensions(object_t *stream, unsigned *width, unsigned *height) {
    ENTER();
    REQUIRE_PARSED(stream);
    *width = (unsigned)stream->frame.width;
    *height = (unsigned)stream->frame.height;
    return leave(SUCCESS);
}

int nvjpegJpegStreamGetComponentsNum(object_t *stream, unsigned *components) {
    ENTER();
    REQUIRE_PARSED(stream);
    *components = (unsigned)stream->frame.components;
    return leave(SUCCESS);
}

int nvjpegJpegStreamGetChromaSubsampling(object_t *stream, int *to) {
    ENTER();
    REQUIRE_PARSED(stream);
    *to = subsampling(&stream->frame);
    return leave(SUCCESS);
}

int nvjpegDecodeBatchedSupported(object_t *handle, object_t *stream, int *unsupported) {
    ENTER();
    REQUIRE_KIND(handle, HANDLE);
    REQUIRE_PARSED(stream);
    *unsupported = !supported(handle, &stream->frame);
    return leave(SUCCESS);
}

int nvjpegDecodeBatchedInitialize(object_t *handle, object_t *state, int batch, int threads, unsigned format) {
    ENTER();
    REQUIRE_KIND(handle, HANDLE);
    REQUIRE_KIND(state, STATE);
    REQUIRE(state->of == handle && batch > 0 && threads == 1 && format == OUTPUT_YUV, "unexpected arguments");
    REQUIRE(!__atomic_load_n(&state->pending, __ATOMIC_SEQ_CST), "the last batch has not finished");
    state->batch = batch;
    initialisations++;
    return leave(SUCCESS);
}

/* NULL where the planes have room for the image, else what is wrong with them. */
static const char *misfit(const frame_t *frame, const image_t *image) {
    int css = subsampling(frame);
    int half = css == CSS_422 || css == CSS_420;
    for (int i = 0; i < 4; i++) {
        size_t width = (size_t)(i && half ? (frame->width + 1) / 2 : frame->width);
        if (i >= frame->components) {
            if (image->channel[i] || image->pitch[i]) return "a plane that the image does not have";
        } else if (!image->channel[i]) {
            return "a plane is missing";
        } else if (image->pitch[i] < width) {
            return "a pitch is less than the plane's width";
        }
    }
    return NULL;
}

typedef struct { object_t *state; const unsigned char *jpeg; size_t length; image_t image; } job_t;

static void run_job(void *argument) {
    job_t *job = argument;
    if (!decoder || decoder(job->jpeg, job->length, job->image.channel, job->image.pitch))
        __atomic_add_fetch(&failed_jobs, 1, __ATOMIC_SEQ_CST);
    __atomic_sub_fetch(&job->state->pending, 1, __ATOMIC_SEQ_CST);
    free(job);
}

static int start(object_t *state, const unsigned char *jpeg, size_t length, const image_t *image, void *stream) {
    /* The simulated driver, where the test has loaded it: for all to see, or by its name alone. */
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    enqueue_t enqueue = (enqueue_t)dlsym(driver ? driver : RTLD_DEFAULT, "weir_simulated_cuda_enqueue");
    if (!decoder) return EXECUTION_FAILED;
    if (!enqueue) return decoder(jpeg, length, image->channel, image->pitch);
    job_t *job = malloc(sizeof *job);
    if (!job) return ALLOCATOR_FAILURE;
    *job = (job_t){ state, jpeg, length, *image };
    __atomic_add_fetch(&state->pending, 1, __ATOMIC_SEQ_CST);
    if (!enqueue(stream, run_job, job)) return SUCCESS;
    __atomic_sub_fetch(&state->pending, 1, __ATOMIC_SEQ_CST);
    free(job);
    return EXECUTION_FAILED;
}

int nvjpegDecodeBatched(object_t *handle, object_t *state, const unsigned char *const *data, const size_t *lengths,
                        image_t *images, void *stream) {
    ENTER();
    REQUIRE_KIND(handle, HANDLE);
    REQUIRE_KIND(state, STATE);
    REQUIRE(state->of == handle && data && lengths && images, "unexpected arguments");
    REQUIRE(state->batch > 0, "the state is not initialised, or not again after a failure");
    REQUIRE(!__atomic_load_n(&state->pending, __ATOMIC_SEQ_CST), "the last batch has not finished");
    int batch = state->batch;
    /* Until all has gone well. */
    state->batch = 0;
    for (int i = 0; i < batch; i++) {
        frame_t frame;
        REQUIRE(data[i], "an image is missing");
        int status = parse(data[i], lengths[i], &frame);
        if (status) return leave(status);
        if (!supported(handle, &frame)) return leave(NOT_SUPPORTED);
        const char *wrong = misfit(&frame, &images[i]);
        REQUIRE(!wrong, wrong);
    }
    for (int i = 0; i < batch; i++) {
        int status = start(state, data[i], lengths[i], &images[i], stream);
        if (status) return leave(status);
    }
    state->batch = batch;
    return leave(SUCCESS);
}

/* Decodes one JPEG through libjpeg-turbo, with its own decompressor, and reports each warning by its code. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <jpeglib.h>
#include <jerror.h>

/* Warnings of libjpeg-turbo (jerror.h); turbo.rs has the same bits. */
enum {
    ADOBE_TRANSFORM = 1 << 0,
    PROGRESSION = 1 << 1,
    EXTRANEOUS_BEFORE_END = 1 << 2,
    EXTRANEOUS = 1 << 3,
    JFIF_VERSION = 1 << 4,
    END_OF_FILE = 1 << 5,
    NOT_SEQUENTIAL = 1 << 6,
    /* Any other warning: pixels are lost, so decoding stops. */
    LOST = 1 << 7,
};

/* Result of decoding; turbo.rs has the same numbers. */
enum { DECODED, FAILED, TOO_MANY_SCANS, OTHER_SIZE, OUT_OF_TIME };

typedef struct {
    uint32_t warnings;
    char text[JMSG_LENGTH_MAX];
} weir_jpeg_report;

typedef struct {
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf out;
    int max_scans;
    /* Deadline on the monotonic clock; negative for none. */
    int64_t end;
    /* Limit on this thread's CPU time, which is not read before work_soonest on the monotonic clock: reading it takes a system call. */
    int64_t work_end, work_soonest;
    weir_jpeg_report *report;
} context;

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int64_t after(int64_t begin, int64_t nanoseconds) {
    return nanoseconds < INT64_MAX - begin ? begin + nanoseconds : INT64_MAX;
}

static int is_over(const context *self) {
    int64_t time;
    if (self->end < 0 && self->work_end < 0) return 0;
    time = now(CLOCK_MONOTONIC);
    if (self->end >= 0 && time >= self->end) return 1;
    return self->work_end >= 0 && time >= self->work_soonest && now(CLOCK_THREAD_CPUTIME_ID) >= self->work_end;
}

/* The error manager is the first member. */
static context *context_of(j_common_ptr info) { return (context *)info->err; }

static void fail(j_common_ptr info) {
    context *self = context_of(info);
    info->err->format_message(info, self->report->text);
    longjmp(self->out, FAILED);
}

static void warn(j_common_ptr info, int level) {
    context *self = context_of(info);
    if (level >= 0) return;
    switch (info->err->msg_code) {
    case JWRN_ADOBE_XFORM: self->report->warnings |= ADOBE_TRANSFORM; break;
    case JWRN_BOGUS_PROGRESSION: self->report->warnings |= PROGRESSION; break;
    case JWRN_EXTRANEOUS_DATA:
        /* Its second parameter is the marker that was found after the bytes. */
        self->report->warnings |= info->err->msg_parm.i[1] == JPEG_EOI ? EXTRANEOUS_BEFORE_END : EXTRANEOUS;
        break;
    case JWRN_JFIF_MAJOR: self->report->warnings |= JFIF_VERSION; break;
    case JWRN_JPEG_EOF: self->report->warnings |= END_OF_FILE; break;
    case JWRN_NOT_SEQUENTIAL: self->report->warnings |= NOT_SEQUENTIAL; break;
    default:
        self->report->warnings |= LOST;
        fail(info);
    }
}

static void silent(j_common_ptr info) { (void)info; }

/* The library calls this for each row of blocks of each scan, and of the output. */
static void look(j_common_ptr info) {
    context *self = context_of(info);
    if (is_over(self)) longjmp(self->out, OUT_OF_TIME);
    if (info->is_decompressor && ((j_decompress_ptr)info)->input_scan_number > self->max_scans)
        longjmp(self->out, TOO_MANY_SCANS);
}

/* Decodes to rows of width pixels, RGB or (for four components) CMYK, at eighths / 8 of the size, within these limits in nanoseconds of
   wall-clock and of CPU time (negative for none). */
int weir_jpeg_decode(const unsigned char *bytes, size_t length, unsigned eighths, unsigned char *pixels, size_t pitch,
                     uint32_t width, uint32_t height, long max_memory, int max_scans, int64_t nanoseconds,
                     int64_t work, weir_jpeg_report *report) {
    struct jpeg_decompress_struct info;
    context self;
    int ended;
    memset(report, 0, sizeof(*report));
    memset(&info, 0, sizeof(info));
    memset(&self, 0, sizeof(self));
    info.err = jpeg_std_error(&self.errors);
    self.errors.error_exit = fail;
    self.errors.emit_message = warn;
    self.errors.output_message = silent;
    self.max_scans = max_scans;
    self.end = nanoseconds < 0 ? -1 : after(now(CLOCK_MONOTONIC), nanoseconds);
    self.work_end = self.work_soonest = -1;
    if (work >= 0) {
        self.work_end = after(now(CLOCK_THREAD_CPUTIME_ID), work);
        self.work_soonest = after(now(CLOCK_MONOTONIC), work);
    }
    self.report = report;
    ended = setjmp(self.out);
    if (ended != DECODED) {
        jpeg_destroy_decompress(&info);
        return ended;
    }
    jpeg_create_decompress(&info);
    self.progress.progress_monitor = look;
    info.progress = &self.progress;
    info.mem->max_memory_to_use = max_memory;
    jpeg_mem_src(&info, bytes, (unsigned long)length);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_EXT_RGB;
    info.scale_num = eighths;
    info.scale_denom = 8;
    jpeg_calc_output_dimensions(&info);
    if (info.output_width != width || info.output_height != height || info.data_precision != 8 ||
        (size_t)info.output_components * width > pitch)
        longjmp(self.out, OTHER_SIZE);
    jpeg_start_decompress(&info);
    while (info.output_scanline < height) {
        JSAMPROW rows[8];
        JDIMENSION count = height - info.output_scanline < 8 ? height - info.output_scanline : 8, row;
        for (row = 0; row < count; row++) rows[row] = pixels + (size_t)(info.output_scanline + row) * pitch;
        look((j_common_ptr)&info);
        jpeg_read_scanlines(&info, rows, count);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return DECODED;
}

/* Checks that a decompressor can be created: the library's version and structures are those of the headers. */
int weir_jpeg_check(weir_jpeg_report *report) {
    struct jpeg_decompress_struct info;
    context self;
    memset(report, 0, sizeof(*report));
    memset(&info, 0, sizeof(info));
    memset(&self, 0, sizeof(self));
    info.err = jpeg_std_error(&self.errors);
    self.errors.error_exit = fail;
    self.errors.output_message = silent;
    self.report = report;
    if (setjmp(self.out)) return FAILED;
    jpeg_create_decompress(&info);
    jpeg_destroy_decompress(&info);
    return DECODED;
}

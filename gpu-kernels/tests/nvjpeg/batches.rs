//! Batches through the simulated nvJPEG: results, initialisation of its state, and cleanup.
#![allow(unsafe_code, reason = "the destinations are blocks of host memory, which outlive the decoding")]

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use gpu_kernels::decode::nvjpeg::{
    EntropyCheck, JpegDestination, JpegPlanes, NvJpeg, NvJpegBackend, NvJpegError, eligible,
};
use gpu_kernels::{DecodeLimits, Decoder};
use turbojpeg::Subsamp;

use crate::drawn::{GREY, Kind, PLAIN, PROGRESSIVE, SUBSAMPLINGS, with_restarts};
use crate::simulated::{Plane, Simulated, compile, planes_of};

/// A JPEG with memory for its planes.
struct Target {
    jpeg: Vec<u8>,
    planes: JpegPlanes,
    block: Vec<u8>,
}

const UNTOUCHED: u8 = 0xA5;

impl Target {
    fn of(jpeg: Vec<u8>) -> Self {
        let found = eligible(&jpeg, NvJpegBackend::Cuda, &DecodeLimits::default()).unwrap();
        let block = vec![UNTOUCHED; found.planes.bytes() as usize];
        Self { jpeg, planes: found.planes, block }
    }

    fn destination(&mut self) -> JpegDestination {
        self.planes.destination(self.block.as_mut_ptr().expose_provenance() as u64)
    }

    /// The decoded planes, without padding.
    fn decoded(&self) -> Vec<Plane> {
        let mut planes = Vec::new();
        for ((width, height), (offset, pitch)) in
            self.planes.sizes().into_iter().zip(self.planes.destination(0).planes)
        {
            if width == 0 {
                continue;
            }
            let (width, height, pitch) = (width as usize, height as usize, pitch as usize);
            let rows = self.block[offset as usize..].chunks(pitch).take(height);
            let pixels = rows.flat_map(|row| &row[..width]).copied().collect();
            planes.push(Plane { width, height, pixels });
        }
        planes
    }

    fn check(&self) {
        assert_eq!(self.decoded(), planes_of(&self.jpeg).unwrap());
    }
}

fn decode(nvjpeg: &mut NvJpeg, targets: &mut [Target], stream: *mut c_void) -> Result<(), NvJpegError> {
    let destinations: Vec<_> = targets.iter_mut().map(Target::destination).collect();
    let jpegs: Vec<_> = targets.iter().map(|target| &target.jpeg[..]).collect();
    // SAFETY: blocks and bytes are the targets', which outlive the stream's work; the simulation needs no context.
    unsafe { nvjpeg.decode(&jpegs, &destinations, stream) }
}

fn every_kind() -> Vec<Vec<u8>> {
    let mut kinds: Vec<_> =
        SUBSAMPLINGS.iter().map(|&(subsampling, _)| Kind { subsampling, ..PLAIN }.draw(101, 67)).collect();
    kinds.extend([GREY.draw(31, 19), PLAIN.draw(1, 1), with_restarts(3, 8), with_restarts(1, 8)]);
    kinds
}

#[test]
fn every_kind_decodes_to_its_planes() {
    let simulated = Simulated::new();
    for backend in [NvJpegBackend::Hardware, NvJpegBackend::Cuda] {
        let mut nvjpeg = NvJpeg::open(&simulated.folders(), backend, 16).unwrap();
        let mut targets: Vec<_> = every_kind().into_iter().map(Target::of).collect();
        if backend == NvJpegBackend::Cuda {
            targets.push(Target::of(PROGRESSIVE.draw(45, 67)));
        }
        for target in &targets {
            assert!(nvjpeg.takes(&target.jpeg, &target.planes));
        }
        decode(&mut nvjpeg, &mut targets, null_mut()).unwrap();
        targets.iter().for_each(Target::check);
        assert_eq!(simulated.live(), 3);
    }
    simulated.check();
}

#[test]
fn the_planes_hold_the_picture_that_the_cpu_decodes() {
    let simulated = Simulated::new();
    let mut nvjpeg = NvJpeg::open(&simulated.folders(), NvJpegBackend::Hardware, 2).unwrap();
    let mut targets = [
        Target::of(Kind { subsampling: Subsamp::None, ..PLAIN }.draw(70, 50)),
        Target::of(GREY.draw(70, 50)),
    ];
    decode(&mut nvjpeg, &mut targets, null_mut()).unwrap();
    let mut decoder = Decoder::new(DecodeLimits::default()).unwrap();
    let [colour, grey] = &targets;
    let planes = colour.decoded();
    let rgb = decoder.decode(&colour.jpeg, u32::MAX).unwrap();
    for (at, pixel) in rgb.pixels.as_chunks::<3>().0.iter().enumerate() {
        let [y, b, r] = [0, 1, 2].map(|plane: usize| f64::from(planes[plane].pixels[at]));
        let expected = [
            y + 1.402 * (r - 128.0),
            y - 0.344_136 * (b - 128.0) - 0.714_136 * (r - 128.0),
            y + 1.772 * (b - 128.0),
        ];
        for (value, expected) in pixel.iter().zip(expected) {
            assert!((f64::from(*value) - expected.clamp(0.0, 255.0)).abs() <= 1.0, "{pixel:?} {expected}");
        }
    }
    let planes = grey.decoded();
    let rgb = decoder.decode(&grey.jpeg, u32::MAX).unwrap();
    assert!(
        rgb.pixels.as_chunks::<3>().0.iter().zip(&planes[0].pixels).all(|(pixel, level)| pixel[1] == *level)
    );
}

#[test]
fn the_state_is_initialised_anew_for_another_size_and_after_a_failure() {
    let simulated = Simulated::new();
    let mut nvjpeg = NvJpeg::open(&simulated.folders(), NvJpegBackend::Cuda, 4).unwrap();
    let mut targets: Vec<_> = (0..4).map(|at| Target::of(PLAIN.draw(20 + at, 30))).collect();
    for (size, initialisations) in [(1, 1), (1, 1), (4, 2), (4, 2), (2, 3), (0, 3), (2, 3), (1, 4)] {
        decode(&mut nvjpeg, &mut targets[..size], null_mut()).unwrap();
        assert_eq!(simulated.initialisations(), initialisations, "{size} images");
    }
    simulated.fail("nvjpegDecodeBatched", 1, 6);
    decode(&mut nvjpeg, &mut targets[..1], null_mut()).unwrap_err();
    decode(&mut nvjpeg, &mut targets[..1], null_mut()).unwrap();
    assert_eq!(simulated.initialisations(), 5);
    // The next batch must not rely on a failed initialisation.
    simulated.fail("nvjpegDecodeBatchedInitialize", 1, 5);
    decode(&mut nvjpeg, &mut targets[..3], null_mut()).unwrap_err();
    decode(&mut nvjpeg, &mut targets[..1], null_mut()).unwrap();
    assert_eq!(simulated.initialisations(), 6);
    targets[..1].iter().for_each(Target::check);
    drop(nvjpeg);
    simulated.check();
}

#[test]
fn a_bad_jpeg_fails_its_batch_and_is_to_blame() {
    let simulated = Simulated::new();
    let mut nvjpeg = NvJpeg::open(&simulated.folders(), NvJpegBackend::Cuda, 4).unwrap();
    let mut targets = [Target::of(PLAIN.draw(40, 30)), Target::of(PLAIN.draw(40, 30))];
    let sound = targets[1].jpeg.clone();
    for damaged in [&sound[..sound.len() / 2], &sound[..100], b"no JPEG"] {
        targets[1].jpeg = damaged.to_vec();
        let error = decode(&mut nvjpeg, &mut targets, null_mut()).unwrap_err();
        assert!(error.is_of_the_image() && !error.is_absent(), "{error}");
        assert!(!nvjpeg.takes(&targets[1].jpeg[..7], &targets[1].planes));
    }
    targets[1].jpeg = sound;
    decode(&mut nvjpeg, &mut targets, null_mut()).unwrap();
    targets.iter().for_each(Target::check);
    drop(nvjpeg);
    simulated.check();
}

#[test]
fn a_batch_out_of_bounds_is_refused_before_nvjpeg_sees_it() {
    let simulated = Simulated::new();
    let mut nvjpeg = NvJpeg::open(&simulated.folders(), NvJpegBackend::Cuda, 1).unwrap();
    assert_eq!(format!("{nvjpeg:?}"), "NvJpeg(Cuda, up to 1 images)");
    let mut targets = [Target::of(PLAIN.draw(40, 30)), Target::of(PLAIN.draw(40, 30))];
    let error = decode(&mut nvjpeg, &mut targets, null_mut()).unwrap_err();
    assert!(matches!(error, NvJpegError::BatchTooLarge { images: 2, max: 1 }), "{error}");
    // SAFETY: nothing is decoded.
    let error = unsafe { nvjpeg.decode(&[&targets[0].jpeg], &[], null_mut()) }.unwrap_err();
    assert!(matches!(error, NvJpegError::Unpaired { images: 1, destinations: 0 }), "{error}");
    assert_eq!(simulated.initialisations(), 0);
    drop(nvjpeg);
    simulated.check();
}

#[test]
fn a_jpeg_that_nvjpeg_reads_otherwise_is_not_taken() {
    let simulated = Simulated::new();
    let mut nvjpeg = NvJpeg::open(&simulated.folders(), NvJpegBackend::Hardware, 1).unwrap();
    let Target { jpeg, planes, .. } = Target::of(PLAIN.draw(40, 30));
    assert!(nvjpeg.takes(&jpeg, &planes));
    for other in [
        JpegPlanes { width: 41, ..planes },
        JpegPlanes { height: 31, ..planes },
        JpegPlanes { shift_y: 0, ..planes },
        JpegPlanes { components: 1, ..planes },
    ] {
        assert!(!nvjpeg.takes(&jpeg, &other), "{other:?}");
    }
    let progressive = PROGRESSIVE.draw(40, 30);
    assert!(!nvjpeg.takes(&progressive, &planes));
    simulated.fail("nvjpegDecodeBatchedSupported", 1, 8);
    assert!(!nvjpeg.takes(&jpeg, &planes));
    assert!(nvjpeg.takes(&jpeg, &planes));
    drop(nvjpeg);
    simulated.check();
}

/// A stream of the simulated driver below.
#[repr(C)]
struct Queue {
    count: c_int,
    functions: [Option<unsafe extern "C" fn(*mut c_void)>; 8],
    arguments: [*mut c_void; 8],
}

const DRIVER: &str = "
    typedef struct { int count; void (*functions[8])(void *); void *arguments[8]; } queue_t;
    int weir_simulated_cuda_enqueue(void *stream, void (*function)(void *), void *argument) {
        queue_t *queue = stream;
        if (!queue) { function(argument); return 0; }
        if (queue->count == 8) return 1;
        queue->functions[queue->count] = function;
        queue->arguments[queue->count++] = argument;
        return 0;
    }";

#[test]
fn with_a_driver_that_has_streams_decoding_waits_for_its_turn() {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libdriver.so");
    std::fs::write(&path, compile(DRIVER)).unwrap();
    // SAFETY: the library has no initialisers. The other tests use the default stream, which it serves at once.
    let driver = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.unwrap();
    // Its function may be in use by other tests until the process ends.
    std::mem::forget(driver);
    let simulated = Simulated::new();
    let mut nvjpeg = NvJpeg::open(&simulated.folders(), NvJpegBackend::Cuda, 8).unwrap();
    let mut targets: Vec<_> = (0..3).map(|at| Target::of(PLAIN.draw(20 + at, 30))).collect();
    let mut queue = Queue { count: 0, functions: [None; 8], arguments: [null_mut(); 8] };
    decode(&mut nvjpeg, &mut targets, (&raw mut queue).cast()).unwrap();
    assert_eq!(queue.count, 3);
    assert!(targets.iter().all(|target| target.block.iter().all(|&byte| byte == UNTOUCHED)));
    for (function, argument) in queue.functions.iter().zip(queue.arguments).take(3) {
        // SAFETY: the library queued this function with this argument.
        unsafe { function.unwrap()(argument) };
    }
    targets.iter().for_each(Target::check);
    assert_eq!(simulated.failed_jobs(), 0);
    drop(nvjpeg);
    simulated.check();
}

#[test]
fn one_lane_may_hand_it_to_another() {
    fn is_send<T: Send>() {}
    is_send::<NvJpeg>();
    is_send::<EntropyCheck>();
}

//! The invariants of lanes, on a simulated device.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpu_kernels::ImageFormat;
use parking_lot::Mutex;

use super::cpu::{DeviceFactory, LaneDevice};
use super::{
    Classified, ClassifyError, Client, LaneError, LaneObserver, LaneSettings, Lanes, SkipReason,
    StageTimings, SubmitError,
};
use crate::engine::EngineError;

/// Takes as many milliseconds as the first byte of the image; panics on 255.
struct Simulated;

impl LaneDevice for Simulated {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        assert!(image[0] != 255, "simulated fault");
        // Images that keep a lane busy (50 and more) do so for seconds: the test may be preempted meanwhile.
        let times = if image[0] < 50 { 1 } else { 20 };
        std::thread::sleep(Duration::from_millis(times * u64::from(image[0])));
        Ok(classified(f32::from(image[0])))
    }
}

/// Reports when it starts with an image.
struct Announced(crossbeam_channel::Sender<()>);

impl LaneDevice for Announced {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        self.0.send(()).unwrap();
        Simulated.classify(image)
    }
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) computed: AtomicUsize,
    pub(super) restarted: AtomicUsize,
    pub(super) stalled: AtomicUsize,
    runs: Mutex<Vec<usize>>,
    pub(super) failures: Mutex<Vec<(&'static str, usize)>>,
    pub(super) skipped: Mutex<HashMap<SkipReason, usize>>,
}

impl LaneObserver for Counts {
    fn computed(&self, _: usize, _: Duration, _: Duration, _: &Result<Classified, LaneError>) {
        self.computed.fetch_add(1, Ordering::SeqCst);
    }
    fn ran(&self, images: usize) {
        self.runs.lock().push(images);
    }
    fn skipped(&self, _: usize, reason: SkipReason) {
        *self.skipped.lock().entry(reason).or_default() += 1;
    }
    fn device_failed(&self, _: usize, kind: &'static str, retried: usize) {
        self.failures.lock().push((kind, retried));
    }
    fn stalled(&self, _: usize) {
        self.stalled.fetch_add(1, Ordering::SeqCst);
    }
    fn restarted(&self, _: usize) {
        self.restarted.fetch_add(1, Ordering::SeqCst);
    }
}

fn factory() -> DeviceFactory {
    Arc::new(|_| Ok(Box::new(Simulated)))
}

fn start(count: usize, capacity: usize) -> (Lanes, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    (Lanes::start(&LaneSettings::new(count, capacity), factory(), counts.clone()).unwrap(), counts)
}

fn background(count: usize, capacity: usize, batch_size: usize) -> LaneSettings {
    LaneSettings { batch_size, background: true, ..LaneSettings::new(count, capacity) }
}

fn image(millis: u8) -> Bytes {
    Bytes::from(vec![millis])
}

/// A deadline far beyond what any test takes.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The answer for an image with one label.
pub(super) fn classified(score: f32) -> Classified {
    let timings = StageTimings::default();
    Classified { scores: vec![score], format: ImageFormat::Png, width: 1, height: 1, timings }
}

pub(super) fn until(what: &str, done: impl Fn() -> bool) {
    let end = soon();
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn answers_every_job_with_its_own_scores() {
    let (lanes, counts) = start(2, 64);
    let answers: Vec<_> = (0..40).map(|i| (i, lanes.submit(image(i % 5), soon()).unwrap())).collect();
    for (i, answer) in answers {
        let (classified, _) = answer.blocking_recv().unwrap().unwrap();
        assert_eq!(classified.scores, [f32::from(i % 5)]);
    }
    assert_eq!(counts.computed.load(Ordering::SeqCst), 40);
    assert_eq!(lanes.alive(), 2);
}

#[test]
fn refuses_beyond_the_bound_at_once() {
    let (lanes, _) = start(1, 2);
    let busy = lanes.submit(image(200), soon()).unwrap();
    while lanes.depth() > 0 {
        std::thread::yield_now();
    }
    let waiting: Vec<_> = (0..2).map(|_| lanes.submit(image(0), soon()).unwrap()).collect();
    assert!(lanes.is_full_for(Client::default()));
    assert_eq!(lanes.submit(image(0), soon()).unwrap_err(), SubmitError::Full { capacity: 2 });
    drop((busy, waiting));
}

#[test]
fn cancelled_and_late_jobs_are_not_computed() {
    let (lanes, counts) = start(1, 8);
    let busy = lanes.submit(image(200), soon()).unwrap();
    drop(lanes.submit(image(1), soon()).unwrap());
    let late = lanes.submit(image(1), Instant::now() + Duration::from_millis(5)).unwrap();
    let last = lanes.submit(image(1), soon()).unwrap();
    assert!(busy.blocking_recv().unwrap().is_ok());
    assert!(matches!(late.blocking_recv().unwrap(), Err(LaneError::DeadlinePassed)));
    assert!(last.blocking_recv().unwrap().is_ok());
    assert_eq!(counts.computed.load(Ordering::SeqCst), 2);
    assert_eq!(counts.skipped.lock().get(&SkipReason::Cancelled), Some(&1));
    assert_eq!(counts.skipped.lock().get(&SkipReason::Deadline), Some(&1));
}

#[test]
fn a_panic_is_contained_and_the_lane_comes_back() {
    let (lanes, counts) = start(1, 8);
    for _ in 0..3 {
        let bad = lanes.submit(image(255), soon()).unwrap();
        let good = lanes.submit(image(1), soon()).unwrap();
        assert!(matches!(bad.blocking_recv().unwrap(), Err(LaneError::Panicked)));
        assert!(good.blocking_recv().unwrap().is_ok());
    }
    assert_eq!(counts.restarted.load(Ordering::SeqCst), 3);
    assert_eq!(lanes.alive(), 1);
}

#[test]
fn jobs_are_answered_while_no_device_can_be_built() {
    let builds = AtomicUsize::new(0);
    let factory: DeviceFactory = Arc::new(move |_| match builds.fetch_add(1, Ordering::SeqCst) {
        1 | 2 => Err(EngineError::NotFinite { label: 0 }),
        _ => Ok(Box::new(Simulated)),
    });
    let lanes = Lanes::start(&LaneSettings::new(1, 8), factory, Arc::new(Counts::default())).unwrap();
    // Both are queued while the lane is busy: the device is rebuilt shortly after the panic.
    let busy = lanes.submit(image(50), soon()).unwrap();
    let bad = lanes.submit(image(255), soon()).unwrap();
    let waiting = lanes.submit(image(1), soon()).unwrap();
    assert!(busy.blocking_recv().unwrap().is_ok());
    assert!(matches!(bad.blocking_recv().unwrap(), Err(LaneError::Panicked)));
    assert!(matches!(waiting.blocking_recv().unwrap(), Err(LaneError::NoDevice)));
    while lanes.alive() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(lanes.submit(image(1), soon()).unwrap().blocking_recv().unwrap().is_ok());
}

#[test]
fn stop_finishes_what_was_accepted() {
    let (lanes, _) = start(2, 16);
    let answers: Vec<_> = (0..10).map(|_| lanes.submit(image(5), soon()).unwrap()).collect();
    lanes.stop();
    assert!(answers.into_iter().all(|a| a.blocking_recv().unwrap().is_ok()));
    assert_eq!(lanes.submit(image(0), soon()).unwrap_err(), SubmitError::Stopped);
}

/// Records the order of images, by the number in their second byte.
struct Noting(Arc<Mutex<Vec<u8>>>);

impl LaneDevice for Noting {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        self.0.lock().push(image[1]);
        Simulated.classify(image)
    }
}

#[tokio::test]
async fn real_time_goes_before_batch_work_that_waited_longer() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&order);
    let factory: DeviceFactory = Arc::new(move |_| Ok(Box::new(Noting(Arc::clone(&noted)))));
    let lanes =
        Arc::new(Lanes::start(&LaneSettings::new(1, 8), factory, Arc::new(Counts::default())).unwrap());
    let busy = lanes.submit(Bytes::from_static(&[100, 0]), soon()).unwrap();
    while lanes.depth() > 0 {
        tokio::task::yield_now().await;
    }
    // The batch queue is full, and further jobs wait for room.
    let mut batch: Vec<_> = (10..16)
        .map(|n| {
            let lanes = Arc::clone(&lanes);
            tokio::spawn(async move { lanes.submit_batch(Bytes::from(vec![5, n]), 0).await.unwrap().await })
        })
        .collect();
    while lanes.batch_depth() < 2 {
        tokio::task::yield_now().await;
    }
    let urgent: Vec<_> = (1..5).map(|n| lanes.submit(Bytes::from(vec![5, n]), soon()).unwrap()).collect();
    assert!(!lanes.is_full_for(Client::default()), "batch work takes no room from real-time work");
    for answer in urgent {
        assert!(answer.await.unwrap().is_ok());
    }
    assert!(busy.await.unwrap().is_ok());
    assert_eq!(order.lock()[..5], [0, 1, 2, 3, 4]);
    // When no real-time job waits, batch work gets the lane.
    for answer in batch.drain(..) {
        assert!(answer.await.unwrap().unwrap().is_ok());
    }
    assert_eq!(order.lock().len(), 11);
    assert_eq!(lanes.batch_depth(), 0);
}

#[tokio::test]
async fn batch_work_waits_for_room_and_is_cancelled_by_dropping_it() {
    let (lanes, counts) = start(1, 8);
    let busy = lanes.submit(image(150), soon()).unwrap();
    while lanes.depth() > 0 {
        tokio::task::yield_now().await;
    }
    let kept = lanes.submit_batch(image(1), 0).await.unwrap();
    drop(lanes.submit_batch(image(1), 0).await.unwrap());
    let waiting = tokio::time::timeout(Duration::from_millis(20), lanes.submit_batch(image(1), 0)).await;
    assert!(waiting.is_err(), "there is room for two batch jobs a lane");
    assert_eq!(lanes.batch_depth(), 2);
    let later = lanes.submit_batch(image(2), 0).await.unwrap();
    assert!(busy.await.unwrap().is_ok());
    assert_eq!(kept.await.unwrap().unwrap().0.scores, [1.0]);
    assert_eq!(later.await.unwrap().unwrap().0.scores, [2.0]);
    assert_eq!(counts.skipped.lock().get(&SkipReason::Cancelled), Some(&1));
    assert_eq!(counts.computed.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn stop_answers_batch_work_too_and_wakes_who_waits_for_room() {
    let (lanes, _) = start(1, 8);
    let lanes = Arc::new(lanes);
    let busy = lanes.submit(image(100), soon()).unwrap();
    while lanes.depth() > 0 {
        tokio::task::yield_now().await;
    }
    let accepted =
        [lanes.submit_batch(image(1), 0).await.unwrap(), lanes.submit_batch(image(1), 0).await.unwrap()];
    let waiting = tokio::spawn({
        let lanes = Arc::clone(&lanes);
        async move { lanes.submit_batch(image(1), 0).await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    tokio::task::spawn_blocking({
        let lanes = Arc::clone(&lanes);
        move || lanes.stop()
    })
    .await
    .unwrap();
    assert!(busy.await.unwrap().is_ok());
    for answer in accepted {
        assert!(answer.await.unwrap().is_ok());
    }
    assert_eq!(waiting.await.unwrap(), Err(SubmitError::Stopped));
    assert_eq!(lanes.submit_batch(image(1), 0).await.unwrap_err(), SubmitError::Stopped);
}

fn start_together(count: usize, batch_size: usize) -> (Arc<Lanes>, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let lanes = Lanes::start(&background(count, 8, batch_size), factory(), counts.clone()).unwrap();
    (Arc::new(lanes), counts)
}

#[tokio::test]
async fn batch_jobs_are_computed_together_when_enough_wait_and_real_time_jobs_go_first() {
    let (lanes, counts) = start_together(1, 4);
    let busy = lanes.submit(image(100), soon()).unwrap();
    while lanes.depth() > 0 {
        tokio::task::yield_now().await;
    }
    let mut batch = Vec::new();
    for n in 0..6 {
        batch.push(lanes.submit_batch(image(n), 0).await.unwrap());
    }
    let urgent: Vec<_> = (0..5).map(|n| lanes.submit(image(n), soon()).unwrap()).collect();
    for (n, answer) in (0u8..5).zip(urgent) {
        assert_eq!(answer.await.unwrap().unwrap().0.scores, [f32::from(n)]);
    }
    for (n, answer) in (0u8..6).zip(batch) {
        assert_eq!(answer.await.unwrap().unwrap().0.scores, [f32::from(n)]);
    }
    assert!(busy.await.unwrap().is_ok());
    assert_eq!(*counts.runs.lock(), [1, 1, 1, 1, 1, 1, 4, 1, 1]);
}

#[tokio::test]
async fn real_time_jobs_that_wait_are_computed_together_and_none_waits_for_another_to_come() {
    let counts = Arc::new(Counts::default());
    let settings = LaneSettings { realtime_batch_size: 2, ..LaneSettings::new(1, 8) };
    let (begun, begins) = crossbeam_channel::unbounded();
    let factory: DeviceFactory = Arc::new(move |_| Ok(Box::new(Announced(begun.clone()))));
    let lanes = Lanes::start(&settings, factory, counts.clone()).unwrap();
    let busy = lanes.submit(image(100), soon()).unwrap();
    // Until it is computed, the lane may still add jobs to it.
    begins.recv().unwrap();
    let batch = lanes.submit_batch(image(9), 0).await.unwrap();
    let urgent: Vec<_> = (0..3).map(|n| lanes.submit(image(n), soon()).unwrap()).collect();
    for (n, answer) in (0u8..3).zip(urgent) {
        assert_eq!(answer.await.unwrap().unwrap().0.scores, [f32::from(n)]);
    }
    assert!(busy.await.unwrap().is_ok() && batch.await.unwrap().is_ok());
    assert_eq!(*counts.runs.lock(), [1, 2, 1, 1]);
}

#[tokio::test]
async fn of_jobs_that_were_together_only_the_one_at_fault_is_told_of_a_panic() {
    let (lanes, counts) = start_together(1, 4);
    let busy = lanes.submit(image(50), soon()).unwrap();
    while lanes.depth() > 0 {
        tokio::task::yield_now().await;
    }
    let mut batch = Vec::new();
    for n in [1, 255, 2, 3] {
        batch.push(lanes.submit_batch(image(n), 0).await.unwrap());
    }
    let mut answers = Vec::new();
    for answer in batch {
        answers.push(answer.await.unwrap().map(|(classified, _)| classified.scores));
    }
    assert!(matches!(answers[1], Err(LaneError::Panicked)));
    for (n, answer) in [(0, 1.0), (2, 2.0), (3, 3.0)] {
        assert_eq!(*answers[n].as_ref().unwrap(), [answer]);
    }
    assert!(busy.await.unwrap().is_ok());
    assert_eq!(counts.restarted.load(Ordering::SeqCst), 2);
    assert_eq!(lanes.alive(), 1);
}

#[tokio::test]
async fn a_lane_that_cannot_be_built_anew_answers_those_it_would_try_alone() {
    let builds = AtomicUsize::new(0);
    let factory: DeviceFactory = Arc::new(move |_| match builds.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Box::new(Simulated)),
        _ => Err(EngineError::NotFinite { label: 0 }),
    });
    let lanes = Lanes::start(&background(1, 8, 2), factory, Arc::new(Counts::default())).unwrap();
    let busy = lanes.submit(image(50), soon()).unwrap();
    while lanes.depth() > 0 {
        tokio::task::yield_now().await;
    }
    let batch =
        [lanes.submit_batch(image(255), 0).await.unwrap(), lanes.submit_batch(image(1), 0).await.unwrap()];
    for answer in batch {
        assert!(matches!(answer.await.unwrap(), Err(LaneError::NoDevice)));
    }
    assert!(busy.await.unwrap().is_ok());
}

#[test]
fn a_panic_while_starting_stops_the_start() {
    let factory: DeviceFactory = Arc::new(|lane| match lane {
        0 => panic!("simulated fault"),
        _ => Ok(Box::new(Simulated)),
    });
    let Err(error) = Lanes::start(&LaneSettings::new(2, 4), factory, Arc::new(Counts::default())) else {
        panic!("started")
    };
    assert!(matches!(error, EngineError::BuildPanicked { lane: 0 }));
}

#[test]
fn a_device_that_does_not_start_stops_the_start() {
    let factory: DeviceFactory = Arc::new(|lane| match lane {
        1 => Err(EngineError::NotFinite { label: 7 }),
        _ => Ok(Box::new(Simulated)),
    });
    let Err(error) = Lanes::start(&LaneSettings::new(2, 4), factory, Arc::new(Counts::default())) else {
        panic!("started")
    };
    assert!(matches!(error, EngineError::NotFinite { label: 7 }));
}

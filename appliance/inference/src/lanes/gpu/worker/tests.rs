//! The invariants of lanes on GPUs, on a simulated device: batches overlap, no job is lost when a device fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot::Receiver as Answer;

use super::simulated::{Fault, Simulated, World, image};
use super::*;
use crate::lanes::cpu::LaneDevice;
use crate::lanes::tests::{Counts, until};
use crate::lanes::{Classified, ClassifyError, LaneError, LaneReply, Lanes, SkipReason, StageTimings};

const LONG: Duration = Duration::from_secs(30);

/// Generation in the answers of a lane on the CPU.
const CPU: f32 = -1.0;

struct OnCpu;

impl LaneDevice for OnCpu {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        let scores = vec![f32::from(image[1]), CPU];
        let (format, timings) = (gpu_kernels::ImageFormat::Jpeg, StageTimings::default());
        Ok(Classified { scores, format, width: 4, height: 3, timings })
    }
}

fn factory(world: &Arc<World>) -> BatchFactory {
    let world = Arc::clone(world);
    Arc::new(move |lane| {
        if world.refuse_to_build.load(Ordering::SeqCst) {
            return Err(EngineError::BuildPanicked { lane });
        }
        Ok(Built { device: Box::new(Simulated::new(&world, 4, 12, 3)), upgrade: None })
    })
}

fn start(world: &Arc<World>, lanes: usize, fallback: bool) -> (Lanes, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let fallback = fallback.then(|| CpuFallback {
        lanes: LaneSettings::new(2, 1000),
        factory: Arc::new(|_| Ok(Box::new(OnCpu))),
    });
    let settings = LaneSettings::new(lanes, 1000);
    let lanes = Lanes::start_batches(&settings, Vec::new(), &factory(world), fallback, counts.clone());
    (lanes.unwrap(), counts)
}

fn submit(lanes: &Lanes, names: impl IntoIterator<Item = u8>) -> Vec<(u8, Answer<LaneReply>)> {
    let submit = |name| (name, lanes.submit(image(1, name), Instant::now() + LONG).unwrap());
    names.into_iter().map(submit).collect()
}

/// Asserts that each image got its own answer; returns the generations of the devices that gave them.
fn check(answers: Vec<(u8, Answer<LaneReply>)>) -> Vec<f32> {
    let check = |(name, answer): (u8, Answer<LaneReply>)| {
        let (classified, _) = answer.blocking_recv().unwrap().unwrap();
        assert_eq!(classified.scores[0], f32::from(name));
        assert_eq!((classified.width, classified.height), (4, 3));
        classified.scores[1]
    };
    answers.into_iter().map(check).collect()
}

#[test]
fn images_are_decoded_while_a_batch_is_computed_and_no_more_than_two_are_under_way() {
    let world = Arc::new(World::default());
    // Batches stay open long enough to be filled, also where the decoders' threads are woken late.
    world.batch_ms.store(30, Ordering::SeqCst);
    world.max_delay_ms.store(100, Ordering::SeqCst);
    let (lanes, counts) = start(&world, 1, false);
    check(submit(&lanes, 0..200));
    let batches = world.batches.lock().clone();
    assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 200);
    assert!(batches.iter().all(|batch| batch.len() <= 4));
    assert!(batches.len() < 100, "{} batches", batches.len());
    assert_eq!(world.most_under_way.load(Ordering::SeqCst), 2);
    assert!(world.decoded_meanwhile.load(Ordering::SeqCst) > 100);
    assert_eq!(counts.computed.load(Ordering::SeqCst), 200);
    lanes.stop();
    assert_eq!(world.kept.load(Ordering::SeqCst), 0);
}

#[test]
fn an_image_that_does_not_decode_fails_alone() {
    let (lanes, _) = start(&Arc::new(World::default()), 1, false);
    let bad = lanes.submit(image(0, 255), Instant::now() + LONG).unwrap();
    check(submit(&lanes, 0..9));
    let error = bad.blocking_recv().unwrap().unwrap_err();
    assert!(matches!(error, LaneError::Classify(ClassifyError::Decode(_))), "{error}");
}

#[test]
fn what_nobody_waits_for_is_not_computed() {
    let world = Arc::new(World::default());
    // Far longer than the steps below take.
    world.batch_ms.store(1500, Ordering::SeqCst);
    let (lanes, counts) = start(&world, 1, false);
    let first = submit(&lanes, 0..8);
    until("two batches are under way", || world.under_way.load(Ordering::SeqCst) == 2);
    // These are decoded while two batches are under way; then one client disconnects and one deadline passes.
    let gone = lanes.submit(image(0, 100), Instant::now() + LONG).unwrap();
    let late = lanes.submit(image(0, 101), Instant::now() + Duration::from_millis(5)).unwrap();
    until("the queue is empty", || lanes.depth() == 0);
    drop(gone);
    assert!(matches!(late.blocking_recv().unwrap(), Err(LaneError::DeadlinePassed)));
    check(first);
    check(submit(&lanes, [1]));
    let computed: Vec<u8> = world.batches.lock().concat();
    assert!(!computed.contains(&100) && !computed.contains(&101), "{computed:?}");
    let skipped = counts.skipped.lock().clone();
    assert_eq!((skipped[&SkipReason::Cancelled], skipped[&SkipReason::Deadline]), (1, 1));
    lanes.stop();
    assert_eq!(world.kept.load(Ordering::SeqCst), 0);
}

#[test]
fn real_time_work_goes_before_batch_work_and_finds_room() {
    let world = Arc::new(World::default());
    world.batch_ms.store(600, Ordering::SeqCst);
    let (lanes, _) = start(&world, 1, false);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let lanes = Arc::new(lanes);
    let patient: Vec<_> = (0..30u8)
        .map(|name| {
            let lanes = Arc::clone(&lanes);
            runtime.spawn(async move { lanes.submit_batch(image(0, name), 0).await.unwrap().await.unwrap() })
        })
        .collect();
    until("two batches are under way", || world.under_way.load(Ordering::SeqCst) == 2);
    let before = world.batches.lock().len();
    check(submit(&lanes, [200, 201]));
    let at = world.batches.lock().iter().position(|batch| batch.contains(&200)).unwrap();
    assert!(at <= before + 2, "it waited for {} batches", at - before);
    for (name, answer) in (0..30).zip(patient) {
        assert_eq!(runtime.block_on(answer).unwrap().unwrap().0.scores[0], name as f32);
    }
}

#[test]
fn what_a_failed_device_had_is_computed_by_the_others() {
    for fault in [Fault::Begin, Fault::Compute, Fault::Panic] {
        let world = Arc::new(World::default());
        world.batch_ms.store(5, Ordering::SeqCst);
        world.fail_at.lock().extend([(7, fault), (40, fault)]);
        let (lanes, counts) = start(&world, 2, false);
        check(submit(&lanes, 0..250));
        // Jobs are returned before the failure is counted.
        until("both failures are counted", || counts.failures.lock().len() == 2);
        let failures = counts.failures.lock().clone();
        let kind = if fault == Fault::Panic { "panicked" } else { "lost" };
        assert!(
            failures.iter().all(|&(found, retried)| found == kind && retried > 0),
            "{fault:?}: {failures:?}"
        );
        until("both devices work again", || lanes.alive() == 2);
        assert_eq!(counts.restarted.load(Ordering::SeqCst), 2);
        lanes.stop();
    }
}

#[test]
fn the_only_lane_tries_again_on_its_new_device_and_no_more_than_once() {
    let world = Arc::new(World::default());
    world.fail_at.lock().extend([(1, Fault::Compute), (1, Fault::Compute)]);
    let (lanes, counts) = start(&world, 1, false);
    let answer = lanes.submit(image(0, 7), Instant::now() + LONG).unwrap();
    assert!(matches!(answer.blocking_recv().unwrap(), Err(LaneError::DeviceFailed)));
    until("both failures are counted", || counts.failures.lock().len() == 2);
    assert_eq!(*counts.failures.lock(), [("lost", 1), ("lost", 0)]);
    assert_eq!(check(submit(&lanes, [8])), [2.0]);
}

#[test]
fn without_a_device_jobs_are_refused_and_then_served_again() {
    let world = Arc::new(World::default());
    world.fail_at.lock().push_back((1, Fault::Begin));
    let (lanes, _) = start(&world, 1, false);
    world.refuse_to_build.store(true, Ordering::SeqCst);
    let answer = lanes.submit(image(0, 7), Instant::now() + LONG).unwrap();
    assert!(matches!(answer.blocking_recv().unwrap(), Err(LaneError::NoDevice)));
    assert!(!lanes.works());
    world.refuse_to_build.store(false, Ordering::SeqCst);
    until("something computes", || lanes.works());
    check(submit(&lanes, 0..20));
}

#[test]
fn the_cpu_stands_in_until_the_device_is_back() {
    let world = Arc::new(World::default());
    world.batch_ms.store(5, Ordering::SeqCst);
    world.fail_at.lock().push_back((4, Fault::Compute));
    let (lanes, _) = start(&world, 1, true);
    world.refuse_to_build.store(true, Ordering::SeqCst);
    let answers = submit(&lanes, 0..8);
    let more = submit(&lanes, 8..100);
    let by: Vec<f32> = check(answers).into_iter().chain(check(more)).collect();
    assert!(by.contains(&CPU) && by.contains(&0.0), "{by:?}");
    until("the CPU computes", || lanes.fallback_workers() == 2);
    assert!(lanes.works() && lanes.alive() == 0);
    assert_eq!(check(submit(&lanes, 0..9)), [CPU; 9]);
    world.refuse_to_build.store(false, Ordering::SeqCst);
    until("the device works again", || lanes.alive() == 1);
    until("the CPU no longer computes", || lanes.fallback_workers() == 0);
    assert_eq!(check(submit(&lanes, 0..9)), [1.0; 9]);
    lanes.stop();
}

#[test]
fn with_a_device_that_can_not_be_built_the_cpu_serves_from_the_start() {
    let world = Arc::new(World::default());
    world.refuse_to_build.store(true, Ordering::SeqCst);
    let (lanes, _) = start(&world, 1, true);
    assert_eq!(check(submit(&lanes, 0..9)), [CPU; 9]);
    world.refuse_to_build.store(false, Ordering::SeqCst);
    until("the device serves alone", || lanes.alive() == 1 && lanes.fallback_workers() == 0);
    assert_eq!(check(submit(&lanes, 0..9)), [0.0; 9]);
}

#[test]
fn without_a_stand_in_a_device_that_can_not_be_built_is_an_error() {
    let world = Arc::new(World::default());
    world.refuse_to_build.store(true, Ordering::SeqCst);
    let settings = LaneSettings::new(2, 10);
    let counts = Arc::new(Counts::default());
    let lanes = Lanes::start_batches(&settings, Vec::new(), &factory(&world), None, counts);
    assert!(matches!(lanes.err(), Some(EngineError::BuildPanicked { lane: 0 | 1 })));
}

#[test]
fn lanes_end_while_the_cpu_stands_in() {
    let world = Arc::new(World::default());
    world.fail_at.lock().push_back((1, Fault::Begin));
    let (lanes, _) = start(&world, 1, true);
    world.refuse_to_build.store(true, Ordering::SeqCst);
    check(submit(&lanes, 0..100));
    let answers = submit(&lanes, 0..100);
    lanes.stop();
    check(answers);
}

#[test]
fn a_better_device_takes_over_between_batches() {
    let world = Arc::new(World::default());
    world.batch_ms.store(50, Ordering::SeqCst);
    let counts = Arc::new(Counts::default());
    let (build, wanted) = crossbeam_channel::bounded::<()>(0);
    let better_world = Arc::clone(&world);
    let upgrade: Builder = Box::new(move || {
        wanted.recv().unwrap();
        Ok(Box::new(Simulated::new(&better_world, 8, 24, 2)))
    });
    let built = Built { device: Box::new(Simulated::new(&world, 4, 12, 3)), upgrade: Some(upgrade) };
    let settings = LaneSettings::new(1, 1000);
    let lanes = Lanes::start_batches(&settings, vec![built], &factory(&world), None, counts.clone()).unwrap();
    assert_eq!(check(submit(&lanes, 0..20)), [0.0; 20]);
    let answers = submit(&lanes, 0..200);
    until("ten batches are computed", || world.batches.lock().len() > 10);
    build.send(()).unwrap();
    let by = check(answers);
    assert_eq!((by[0], by[199]), (0.0, 1.0));
    assert_eq!(counts.computed.load(Ordering::SeqCst), 220);
    assert!(counts.failures.lock().is_empty());
    lanes.stop();
    assert_eq!(world.kept.load(Ordering::SeqCst), 0);
}

#[test]
fn a_better_device_that_can_not_be_built_changes_nothing() {
    let world = Arc::new(World::default());
    let upgrade: Builder = Box::new(|| Err(EngineError::BuildPanicked { lane: 0 }));
    let built = Built { device: Box::new(Simulated::new(&world, 4, 12, 3)), upgrade: Some(upgrade) };
    let settings = LaneSettings::new(1, 1000);
    let counts = Arc::new(Counts::default());
    let lanes = Lanes::start_batches(&settings, vec![built], &factory(&world), None, counts).unwrap();
    assert_eq!(check(submit(&lanes, 0..50)), [0.0; 50]);
}

#[test]
fn stopping_answers_everything_first() {
    let world = Arc::new(World::default());
    world.batch_ms.store(5, Ordering::SeqCst);
    world.fail_at.lock().push_back((6, Fault::Compute));
    let (lanes, _) = start(&world, 1, false);
    let answers = submit(&lanes, 0..60);
    lanes.stop();
    check(answers);
}

//! Images that block a lane, its memory or its decoder: how they are answered, and that other images are still computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::cpu::{DeviceFactory, LaneDevice};
use super::decoder::{LaneDecoder, tests::fragile};
use super::tests::{Counts, classified, soon, until};
use super::{Classified, ClassifyError, Client, LaneError, LaneSettings, Lanes, Stalls, SubmitError};
use crate::decode_memory::DecodeMemory;

const MIB: u64 = 1 << 20;
/// Far longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);
/// Long enough that a thread which is merely preempted is not abandoned.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Blocks on an image that begins with an `s` until it is released.
struct Sticky(Receiver<()>);

impl LaneDevice for Sticky {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        if image.first() == Some(&b's') {
            let _ = self.0.recv();
        }
        Ok(classified(1.0))
    }
}

fn sticky(count: usize, max_stuck: usize, memory: &Arc<DecodeMemory>) -> (Lanes, Arc<Counts>, Sender<()>) {
    let (release, stuck) = unbounded();
    let factory: DeviceFactory = Arc::new(move |_| Ok(Box::new(Sticky(stuck.clone()))));
    let counts = Arc::new(Counts::default());
    let settings = LaneSettings {
        memory: Arc::clone(memory),
        stalls: Stalls::new(STALL_TIMEOUT, max_stuck),
        ..LaneSettings::new(count, 16)
    };
    (Lanes::start(&settings, factory, counts.clone()).unwrap(), counts, release)
}

#[test]
fn a_lane_that_is_stuck_is_replaced_and_its_memory_is_held_until_it_comes_back() {
    let memory = DecodeMemory::new(100 * MIB);
    let (lanes, counts, release) = sticky(1, 4, &memory);
    let stuck = lanes.admit_blocking(Bytes::from_static(b"s"), 40 * MIB, soon()).unwrap();
    let waits = lanes.admit_blocking(Bytes::from_static(b"good"), 10 * MIB, soon()).unwrap();
    let error = stuck.blocking_recv().unwrap().unwrap_err();
    assert!(matches!(error, LaneError::Classify(ClassifyError::Stalled { .. })), "{error}");
    assert_eq!((error.code(), error.is_of_the_model()), ("lane_stalled", true));
    assert!(waits.blocking_recv().unwrap().is_ok(), "who waited behind it is answered");
    until("the memory of what is answered is released", || memory.used() == 40 * MIB);
    assert_eq!((lanes.alive(), lanes.stuck(), counts.stalled.load(Ordering::SeqCst)), (1, (1, false), 1));
    release.send(()).unwrap();
    until("the stuck thread has ended", || lanes.stuck().0 == 0 && memory.used() == 0);
    assert_eq!((lanes.alive(), counts.restarted.load(Ordering::SeqCst)), (1, 0));
    lanes.stop();
}

#[test]
fn stuck_threads_are_bounded_then_nothing_works_until_one_comes_back() {
    let (lanes, _, release) = sticky(2, 2, &DecodeMemory::unlimited());
    let images: Vec<_> = (0..4).map(|_| lanes.submit(Bytes::from_static(b"s"), soon()).unwrap()).collect();
    for image in images {
        assert!(image.blocking_recv().unwrap().is_err());
    }
    until("all are stuck", || lanes.stuck() == (4, true) && !lanes.works());
    let refused = lanes.submit(Bytes::from_static(b"good"), soon()).unwrap().blocking_recv().unwrap();
    assert!(matches!(refused, Err(LaneError::NoDevice)), "{refused:?}");
    for _ in 0..4 {
        release.send(()).unwrap();
    }
    until("lanes are back", || lanes.alive() == 2 && lanes.stuck() == (0, false));
    assert!(lanes.submit(Bytes::from_static(b"good"), soon()).unwrap().blocking_recv().unwrap().is_ok());
}

#[test]
fn lanes_stop_although_one_is_stuck() {
    let (lanes, _, release) = sticky(2, 2, &DecodeMemory::unlimited());
    let stuck = lanes.submit(Bytes::from_static(b"s"), soon()).unwrap();
    let good = lanes.submit(Bytes::from_static(b"good"), soon()).unwrap();
    lanes.stop();
    assert!(stuck.blocking_recv().unwrap().is_err());
    assert!(good.blocking_recv().unwrap().is_ok());
    drop(release);
}

/// A lane whose decoder panics on images that begin with a 255.
struct Panicking(LaneDecoder);

impl LaneDevice for Panicking {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        Ok(self.0.with(image.into(), 1, |_| classified(1.0))?)
    }
}

#[test]
fn images_that_make_the_decoder_panic_cost_no_session_and_nobody_elses_throughput() {
    let built = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&built);
    let factory: DeviceFactory = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Panicking(fragile().0)))
    });
    let counts = Arc::new(Counts::default());
    let lanes = Lanes::start(&LaneSettings::new(2, 64), factory, counts.clone()).unwrap();
    for _ in 0..20 {
        let bad: Vec<_> = (0..8).map(|_| lanes.submit(Bytes::from_static(&[255]), soon()).unwrap()).collect();
        let good = lanes.submit(Bytes::from_static(b"good"), soon()).unwrap();
        assert!(good.blocking_recv().unwrap().is_ok());
        for bad in bad {
            let error = bad.blocking_recv().unwrap().unwrap_err();
            assert_eq!((error.code(), error.is_of_the_model()), ("corrupt_image", false));
        }
    }
    assert_eq!((built.load(Ordering::SeqCst), counts.restarted.load(Ordering::SeqCst)), (2, 0));
    assert_eq!(lanes.alive(), 2);
}

/// Takes a while, and records the memory that is reserved meanwhile.
struct Slow(Arc<DecodeMemory>, Arc<AtomicUsize>);

impl LaneDevice for Slow {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        self.1.fetch_max(usize::try_from(self.0.used()).unwrap(), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(u64::from(image[0])));
        Ok(classified(1.0))
    }
}

fn slow(count: usize, memory: &Arc<DecodeMemory>) -> (Arc<Lanes>, Arc<AtomicUsize>) {
    let most = Arc::new(AtomicUsize::new(0));
    let (noted, of) = (Arc::clone(&most), Arc::clone(memory));
    let factory: DeviceFactory = Arc::new(move |_| Ok(Box::new(Slow(Arc::clone(&of), Arc::clone(&noted)))));
    let settings = LaneSettings { memory: Arc::clone(memory), ..LaneSettings::new(count, 16) };
    (Arc::new(Lanes::start(&settings, factory, Arc::new(Counts::default())).unwrap()), most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_wait_for_memory_outside_the_queue_and_small_ones_pass_them() {
    let memory = DecodeMemory::new(100 * MIB);
    let (lanes, most) = slow(2, &memory);
    let refused =
        lanes.admit(Client::default(), Bytes::from_static(&[1]), 101 * MIB, soon()).await.unwrap_err();
    assert!(matches!(refused, SubmitError::TooCostly(_)), "{refused}");
    let large: Vec<_> = (0..12)
        .map(|_| {
            let lanes = Arc::clone(&lanes);
            tokio::spawn(async move {
                let answer = lanes
                    .admit(Client::default(), Bytes::from_static(&[250]), 70 * MIB, soon())
                    .await
                    .unwrap();
                answer.await.unwrap().unwrap();
            })
        })
        .collect();
    until("most wait", || memory.waiting() >= 8);
    assert!(
        !lanes.is_full_for(Client::default()) && lanes.depth() < 2,
        "who waits for memory takes no place in the queue"
    );
    for _ in 0..5 {
        let answer =
            lanes.admit(Client::default(), Bytes::from_static(&[1]), 10 * MIB, soon()).await.unwrap();
        answer.await.unwrap().unwrap();
    }
    assert!(memory.waiting() > 0, "small images are answered before large ones that came earlier");
    for large in large {
        large.await.unwrap();
    }
    until("all is released", || memory.used() == 0);
    assert!(most.load(Ordering::SeqCst) as u64 <= 100 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_memory_ends_with_the_deadline_and_with_the_client() {
    let memory = DecodeMemory::new(100 * MIB);
    let (lanes, _) = slow(1, &memory);
    let held = memory.try_reserve(100 * MIB).unwrap();
    let late = lanes
        .admit(
            Client::default(),
            Bytes::from_static(&[1]),
            50 * MIB,
            Instant::now() + Duration::from_millis(20),
        )
        .await;
    assert_eq!(late.unwrap_err(), SubmitError::DeadlinePassed);
    let gone = tokio::time::timeout(
        Duration::from_millis(20),
        lanes.admit(Client::default(), Bytes::from_static(&[1]), 50 * MIB, soon()),
    );
    assert!(gone.await.is_err());
    assert_eq!((memory.waiting(), memory.used()), (0, 100 * MIB));
    // The limit is that of the queue; further images are rejected at once.
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            let lanes = Arc::clone(&lanes);
            tokio::spawn(async move {
                lanes
                    .admit(Client::default(), Bytes::from_static(&[0]), 50 * MIB, soon())
                    .await
                    .unwrap()
                    .await
            })
        })
        .collect();
    until("all wait", || memory.waiting() == 16);
    let refused =
        lanes.admit(Client::default(), Bytes::from_static(&[1]), 50 * MIB, soon()).await.unwrap_err();
    assert_eq!(refused, SubmitError::Full { capacity: 16 });
    drop(held);
    for waiting in waiting {
        waiting.await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_work_that_holds_memory_does_not_keep_it_from_real_time_work_under_load() {
    let memory = DecodeMemory::new(100 * MIB);
    let (lanes, _) = slow(1, &memory);
    let busy = lanes.admit(Client::default(), Bytes::from_static(&[100]), MIB, soon()).await.unwrap();
    // It has its reservation and waits for an idle lane, which never comes.
    let batch = lanes.submit_batch(Bytes::from_static(&[1]), 70 * MIB).await.unwrap();
    let stop = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..3)
        .map(|_| {
            let (lanes, stop) = (Arc::clone(&lanes), Arc::clone(&stop));
            tokio::spawn(async move {
                while stop.load(Ordering::SeqCst) == 0 {
                    let answer =
                        lanes.admit(Client::default(), Bytes::from_static(&[2]), MIB, soon()).await.unwrap();
                    answer.await.unwrap().unwrap();
                }
            })
        })
        .collect();
    let large = lanes
        .admit(Client::default(), Bytes::from_static(&[1]), 70 * MIB, Instant::now() + LONG)
        .await
        .unwrap();
    large.await.unwrap().unwrap();
    batch.await.unwrap().unwrap();
    stop.store(1, Ordering::SeqCst);
    for load in load {
        load.await.unwrap();
    }
    drop(busy);
}

#[test]
fn an_image_that_is_computed_again_has_its_memory_again() {
    let memory = DecodeMemory::new(100 * MIB);
    let (release, stuck) = unbounded::<()>();
    let factory: DeviceFactory = Arc::new(move |_| Ok(Box::new(Sticky(stuck.clone()))));
    let settings = LaneSettings {
        memory: Arc::clone(&memory),
        realtime_batch_size: 2,
        stalls: Stalls::new(STALL_TIMEOUT, 4),
        ..LaneSettings::new(1, 16)
    };
    let lanes = Lanes::start(&settings, factory, Arc::new(Counts::default())).unwrap();
    let first = lanes.admit_blocking(Bytes::from_static(b"s"), 10 * MIB, soon()).unwrap();
    // These two are computed together: one is stuck, and the other is retried alone.
    let both = [&b"s"[..], b"good"]
        .map(|image| lanes.admit_blocking(Bytes::from_static(image), 10 * MIB, soon()).unwrap());
    assert_eq!(first.blocking_recv().unwrap().unwrap_err().code(), "lane_stalled");
    let [bad, good] = both.map(|answer| answer.blocking_recv().unwrap());
    assert_eq!(bad.unwrap_err().code(), "lane_stalled");
    assert!(good.is_ok());
    drop(release);
    until("all is released", || memory.used() == 0 && lanes.stuck().0 == 0);
}

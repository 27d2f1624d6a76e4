//! No step of the wall clock deletes an event, while the outbox is open or across restarts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::tempdir;

use super::faults::open_at;
use crate::outbox::clock::Manual;
use crate::outbox::{Outbox, OutboxConfig, Reader, WhenFull};

const DAY_MS: u64 = 24 * 3600 * 1000;
const STEPS: usize = 50;

struct Rig {
    _dir: tempfile::TempDir,
    config: OutboxConfig,
    clock: Arc<Manual>,
    outbox: Option<Outbox>,
}

fn rig(when_full: WhenFull, has_consumer: bool) -> Rig {
    let dir = tempdir().unwrap();
    let config = OutboxConfig {
        max_bytes: 1 << 20,
        segment_bytes: 4096,
        max_age: Duration::from_secs(3600),
        keep_committed: Duration::ZERO,
        when_full,
        has_consumer,
        ..OutboxConfig::new(dir.path())
    };
    let clock = Arc::new(Manual::default());
    clock.wall_ms.store(20_000 * DAY_MS, Ordering::Release);
    let outbox = Some(open_at(&config, &clock).unwrap().0);
    Rig { _dir: dir, config, clock, outbox }
}

impl Rig {
    fn outbox(&self) -> &Outbox {
        self.outbox.as_ref().unwrap()
    }

    fn put(&self) -> u64 {
        // Segments of four, so that most are closed.
        self.outbox().append(vec![b'.'; 900]).wait().unwrap()
    }

    fn restart(&mut self) {
        self.outbox = None;
        self.outbox = Some(open_at(&self.config, &self.clock).unwrap().0);
    }

    fn read(&self) -> Vec<u64> {
        Reader::open(&self.config.dir).unwrap().map(|event| event.unwrap().sequence).collect()
    }

    /// Advances observed time. Two appends follow: the second is written after retention has run once.
    fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.clock.running_ms.fetch_add(ms, Ordering::AcqRel);
        self.put();
        self.put();
    }

    fn until(&self, what: impl Fn(&Outbox) -> bool) {
        let start = Instant::now();
        while !what(self.outbox()) {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", self.outbox().stats());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(u64, bool)>> {
    // Anywhere between 1970 and 2160, and back.
    prop::collection::vec((0..70_000 * DAY_MS, any::<bool>()), STEPS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_time: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_step_of_the_wall_clock_deletes_an_event(steps in steps(), has_consumer: bool, refuse: bool) {
        let when_full = if refuse { WhenFull::Refuse } else { WhenFull::DropOldest };
        let mut rig = rig(when_full, has_consumer);
        for (wall_ms, restarts) in steps {
            rig.clock.wall_ms.store(wall_ms, Ordering::Release);
            if restarts {
                rig.restart();
            }
            rig.pass(Duration::from_millis(1));
        }
        let all: Vec<u64> = (1..=2 * STEPS as u64).collect();
        prop_assert_eq!(rig.read(), all);
        let stats = rig.outbox().stats();
        prop_assert_eq!((stats.dropped_by_age, stats.dropped_by_size, stats.error), (0, 0, None));
    }
}

#[test]
fn a_box_that_boots_in_the_past_keeps_its_events_once_the_time_is_right() {
    let mut rig = rig(WhenFull::DropOldest, true);
    rig.clock.wall_ms.fetch_sub(60 * DAY_MS, Ordering::AcqRel);
    for _ in 0..10 {
        rig.put();
    }
    rig.clock.wall_ms.fetch_add(60 * DAY_MS, Ordering::AcqRel);
    rig.pass(Duration::from_secs(36));
    assert_eq!(rig.read().len(), 12);
    rig.restart();
    rig.pass(Duration::from_secs(36));
    assert_eq!(rig.read().len(), 14);
}

#[test]
fn observed_time_adds_up_across_restarts_and_time_that_nobody_observed_does_not_count() {
    let mut rig = rig(WhenFull::DropOldest, false);
    for _ in 0..8 {
        rig.put();
    }
    for _ in 0..5 {
        rig.pass(Duration::from_secs(600));
        // The clock of a process starts over, and the box was off for a year.
        rig.outbox = None;
        rig.clock.running_ms.store(0, Ordering::Release);
        rig.clock.wall_ms.fetch_add(365 * DAY_MS, Ordering::AcqRel);
        rig.outbox = Some(open_at(&rig.config, &rig.clock).unwrap().0);
        assert_eq!(rig.read()[0], 1);
    }
    rig.pass(Duration::from_secs(601));
    rig.until(|outbox| outbox.stats().dropped_by_age >= 8);
    assert!(rig.read()[0] > 8);
    assert_eq!(rig.outbox().stats().error, None, "nobody was to send them");
}

#[test]
fn refuse_keeps_what_was_not_sent_whatever_its_age() {
    let mut rig = rig(WhenFull::Refuse, true);
    for _ in 0..8 {
        rig.put();
    }
    rig.pass(Duration::from_secs(100 * 3600));
    rig.restart();
    rig.pass(Duration::from_secs(100 * 3600));
    assert_eq!(rig.read().len(), 12);
    rig.outbox().commit(9).unwrap();
    rig.pass(Duration::from_secs(1));
    rig.until(|outbox| outbox.stats().events <= 6);
    assert_eq!((rig.outbox().stats().dropped_by_age, rig.outbox().stats().backlog), (0, 5));
}

#[test]
fn drop_oldest_says_what_it_deleted_until_the_consumer_has_caught_up() {
    for at_start in [false, true] {
        let mut rig = rig(WhenFull::DropOldest, true);
        for _ in 0..8 {
            rig.put();
        }
        if at_start {
            // Young enough for the closing process, which would delete them otherwise; too old for the next.
            rig.clock.running_ms.fetch_add(1801 * 1000, Ordering::AcqRel);
            rig.config.max_age = Duration::from_secs(1800);
            rig.restart();
        } else {
            rig.clock.running_ms.fetch_add(3601 * 1000, Ordering::AcqRel);
        }
        rig.put();
        rig.until(|outbox| outbox.stats().dropped_by_age > 0);
        let stats = rig.outbox().stats();
        let error = stats.error.unwrap();
        assert!(error.contains("unsent events were deleted") && error.contains("for their age"), "{error}");
        assert!(stats.dropped_by_age <= 8, "at start: {at_start}");
        rig.outbox().commit(rig.outbox().last_sequence()).unwrap();
        assert_eq!(rig.outbox().stats().error, None);
    }
}

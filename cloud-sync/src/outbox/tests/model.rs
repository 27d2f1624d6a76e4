//! Whatever the disk does, and whenever power is lost: what was acknowledged is there, in order, once. Only committed
//! events may be deleted, when the disk is full.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::faults::{Fault, Faults, Survives, open};
use crate::outbox::{Outbox, OutboxConfig, Reader, WhenFull};

#[derive(Debug, Clone)]
enum Step {
    /// Appends of these sizes, all in flight before the first is awaited.
    Append(Vec<usize>),
    /// The disk operation after this many further ones fails.
    Fail(usize, Fault),
    Commit,
    Reopen,
    LosePower(Survives),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        (0..100_u8).prop_map(|percent| Fault::NoSpace { percent }),
        (0..100_u8).prop_map(|percent| Fault::Broken { percent }),
        Just(Fault::Lost),
    ];
    prop_oneof![
        4 => prop::collection::vec(0..1500_usize, 1..8).prop_map(Step::Append),
        // Small ones, for which the zeros ahead suffice a few times.
        3 => prop::collection::vec(0..80_usize, 1..4).prop_map(Step::Append),
        4 => (0..6_usize, fault).prop_map(|(after, fault)| Step::Fail(after, fault)),
        1 => Just(Step::Commit),
        1 => Just(Step::Reopen),
        1 => survives().prop_map(Step::LosePower),
    ]
}

fn survives() -> impl Strategy<Value = Survives> {
    prop_oneof![(0..=100_u64).prop_map(Survives::First), any::<u64>().prop_map(Survives::Scattered)]
}

struct World {
    dir: TempDir,
    faults: Arc<Faults>,
    outbox: Option<Outbox>,
    /// Follows from the start and never reopens, like `tail -f`.
    follower: Reader,
    followed: BTreeMap<u64, Vec<u8>>,
    acknowledged: BTreeMap<u64, Vec<u8>>,
    /// Sequence up to which the consumer has committed.
    committed: u64,
    submitted: HashSet<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let faults = Faults::scripted([]);
        let outbox = Some(open(&config(&dir), &faults).unwrap().0);
        let follower = Reader::open(dir.path()).unwrap();
        let (followed, acknowledged, committed, submitted) = Default::default();
        Self { dir, faults, outbox, follower, followed, acknowledged, committed, submitted }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append(sizes) => self.append(&sizes),
            Step::Fail(after, fault) => self.faults.fail_in(after, fault),
            Step::Commit => {
                let outbox = self.outbox.as_ref().unwrap();
                self.committed = outbox.last_sequence();
                outbox.commit(self.committed).unwrap();
            }
            Step::Reopen => {
                self.outbox.take().unwrap().close().unwrap();
                self.reopen();
            }
            Step::LosePower(survives) => {
                let after = tempdir().unwrap();
                self.faults.lose_power(self.dir.path(), after.path(), survives);
                self.outbox = None;
                self.dir = after;
                self.reopen();
                self.follower = Reader::open(self.dir.path()).unwrap();
                self.followed.clear();
            }
        }
        self.follow();
    }

    fn append(&mut self, sizes: &[usize]) {
        let outbox = self.outbox.as_ref().unwrap();
        let waits: Vec<_> = sizes
            .iter()
            .map(|size| {
                let mut payload = format!("{:06}", self.submitted.len()).into_bytes();
                payload.resize(payload.len() + size, b'.');
                self.submitted.insert(payload.clone());
                (payload.clone(), outbox.append(payload))
            })
            .collect();
        for (payload, wait) in waits {
            if let Ok(sequence) = wait.wait() {
                let last = self.acknowledged.last_key_value().map_or(0, |(last, _)| *last);
                assert!(sequence > last, "{sequence} after {last}");
                self.acknowledged.insert(sequence, payload);
            }
        }
    }

    fn reopen(&mut self) {
        self.faults = Faults::scripted([]);
        let (outbox, found) = open(&config(&self.dir), &self.faults).unwrap();
        self.outbox = Some(outbox);
        let mut read = BTreeMap::new();
        read_into(&mut Reader::open(self.dir.path()).unwrap(), &mut read);
        self.check(&read);
        let outbox = self.outbox.as_ref().unwrap();
        assert_eq!(outbox.stats().events, read.len() as u64);
        let backlog = read.keys().filter(|sequence| **sequence > outbox.committed()).count();
        if found.damaged.is_empty() {
            assert_eq!(outbox.stats().backlog, backlog as u64);
        } else {
            // A hole in a group that was never acknowledged: its events count as if they were there.
            let events = outbox.stats().events;
            assert!((backlog as u64..=events).contains(&outbox.stats().backlog), "{:?}", outbox.stats());
        }
        assert!(outbox.last_sequence() >= outbox.committed());
    }

    fn follow(&mut self) {
        read_into(&mut self.follower, &mut self.followed);
        self.check(&self.followed);
    }

    fn check(&self, read: &BTreeMap<u64, Vec<u8>>) {
        for (sequence, payload) in &self.acknowledged {
            let found = read.get(sequence);
            let is_there = found == Some(payload) || found.is_none() && *sequence <= self.committed;
            assert!(is_there, "event {sequence} was acknowledged");
        }
        for (sequence, payload) in read {
            assert!(self.submitted.contains(payload), "event {sequence} was never appended");
        }
    }
}

fn config(dir: &TempDir) -> OutboxConfig {
    // Small segments, so that most groups meet a rotation; a limit that is never reached. No uncommitted event may be
    // deleted for space: what is missing was lost.
    OutboxConfig {
        max_bytes: 16 << 20,
        segment_bytes: 4096,
        when_full: WhenFull::Refuse,
        ..OutboxConfig::new(dir.path())
    }
}

fn read_into(reader: &mut Reader, events: &mut BTreeMap<u64, Vec<u8>>) {
    while let Some(event) = reader.try_next().unwrap() {
        let last = events.last_key_value().map_or(0, |(last, _)| *last);
        assert!(event.sequence > last, "{} was read after {last}", event.sequence);
        events.insert(event.sequence, event.payload);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        // Milliseconds: each case waits for many fsyncs.
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_acknowledged_is_ever_lost(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.take(Step::Reopen);
        world.take(Step::LosePower(Survives::First(0)));
    }
}

#[test]
fn every_single_operation_may_fail_in_every_way() {
    let workload = || {
        let sizes = [vec![900; 7], vec![10; 3], vec![30], vec![40], vec![1400; 6]];
        sizes.map(Step::Append)
    };
    let mut undisturbed = World::new();
    workload().into_iter().for_each(|step| undisturbed.take(step));
    let operations = undisturbed.faults.operations();
    assert!(operations > 10);
    let ways = [Fault::NoSpace { percent: 0 }, Fault::NoSpace { percent: 99 }, Fault::Broken { percent: 50 }];
    for at in 0..operations {
        for fault in ways.into_iter().chain([Fault::Lost]) {
            for survives in [Survives::First(0), Survives::First(100), Survives::Scattered(at as u64)] {
                let mut world = World::new();
                world.faults.fail_in(at, fault);
                workload().into_iter().for_each(|step| world.take(step));
                world.take(Step::LosePower(survives));
                world.take(Step::Append(vec![1]));
                assert!(world.acknowledged.len() >= 11, "operation {at}, {fault:?}, {survives:?}");
            }
        }
    }
}

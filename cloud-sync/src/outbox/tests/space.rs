//! Space prepared for the writer: zeros ahead of it, on which nothing depends, and the reserve.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{TempDir, tempdir};

use super::faults::{Fault, Faults, Survives, open};
use crate::outbox::segment::{self, Scan, Step};
use crate::outbox::{Durability, MIN_MAX_BYTES, Outbox, OutboxConfig, Reader, WhenFull};

/// A record of 128 bytes.
const PAYLOAD: usize = 104;

/// Segments of 64 KiB, so steps of 8 KiB.
fn config(dir: &TempDir) -> OutboxConfig {
    OutboxConfig { segment_bytes: 64 << 10, when_full: WhenFull::Refuse, ..OutboxConfig::new(dir.path()) }
}

fn put(outbox: &Outbox, size: usize) -> Option<u64> {
    outbox.append(vec![b'x'; size]).wait().ok()
}

fn read(dir: &Path) -> Vec<u64> {
    Reader::open(dir).unwrap().map(|event| event.unwrap().sequence).collect()
}

/// Where the records of a segment end, and the length of its file.
fn extent(dir: &Path, first: u64) -> (u64, u64) {
    let mut scan = Scan::open(dir, first).unwrap();
    let length = fs::metadata(segment::path(dir, first)).unwrap().len();
    loop {
        match scan.step().unwrap() {
            Step::Record(_) => {}
            Step::Damage { .. } => panic!("damage in {first}"),
            Step::End { offset, unread } => {
                assert_eq!(unread, 0);
                return (offset, length);
            }
        }
    }
}

fn total(dir: &Path) -> u64 {
    segment::list(dir).unwrap().into_iter().map(|first| extent(dir, first).1).sum()
}

fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_file_grows_by_the_step_and_not_by_the_append() {
    let dir = tempdir().unwrap();
    let faults = Faults::scripted([]);
    let outbox = open(&config(&dir), &faults).unwrap().0;
    let mut lengths = Vec::new();
    for n in 1..=400 {
        assert_eq!(put(&outbox, PAYLOAD), Some(n));
        // Not the file's own length: zeros follow the acknowledgement, and a file system may show half of a write.
        lengths.push(outbox.stats().bytes);
    }
    assert!(lengths.is_sorted());
    lengths.dedup();
    // 50 KiB of records; a growth is one write of zeros, and one more where a group exceeded it.
    assert!(lengths.len() <= 9, "{lengths:?}");
    assert!((2..=16).contains(&faults.growths()), "{}", faults.growths());
    assert!(outbox.stats().syncs <= 400 + 8, "{:?}", outbox.stats());
    outbox.close().unwrap();
    assert_eq!(extent(dir.path(), 1), (24 + 400 * 128, 24 + 400 * 128));
}

#[test]
fn space_is_prepared_while_nothing_waits() {
    let dir = tempdir().unwrap();
    let outbox = Outbox::open(config(&dir)).unwrap().0;
    put(&outbox, PAYLOAD).unwrap();
    assert_eq!(extent(dir.path(), 1), (152, 152 + (8 << 10)));
    for _ in 0..33 {
        put(&outbox, PAYLOAD).unwrap();
    }
    until(|| outbox.stats().bytes == 152 + (16 << 10));
    assert_eq!(extent(dir.path(), 1).1, outbox.stats().bytes);
}

#[test]
fn nothing_is_prepared_where_nothing_is_forced() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig { durability: Durability::OsBuffered, ..config(&dir) };
    let outbox = Outbox::open(config).unwrap().0;
    put(&outbox, PAYLOAD).unwrap();
    assert_eq!(extent(dir.path(), 1), (152, 152));
}

#[test]
fn closed_segments_hold_no_zeros() {
    let dir = tempdir().unwrap();
    let outbox = Outbox::open(OutboxConfig { segment_bytes: 4096, ..config(&dir) }).unwrap().0;
    for n in 0..60 {
        put(&outbox, n * 7).unwrap();
    }
    let list = segment::list(dir.path()).unwrap();
    assert!(list.len() > 3);
    for first in &list[..list.len() - 1] {
        let (records, length) = extent(dir.path(), *first);
        assert_eq!(records, length, "{first}");
    }
    outbox.close().unwrap();
    let (records, length) = extent(dir.path(), *list.last().unwrap());
    assert_eq!(records, length);
    assert_eq!(total(dir.path()), outbox.stats().bytes);
}

#[test]
fn zeros_that_a_crash_leaves_are_not_worth_a_word() {
    for survives in [Survives::First(0), Survives::First(100), Survives::Scattered(3)] {
        let dir = tempdir().unwrap();
        let faults = Faults::scripted([]);
        let outbox = open(&config(&dir), &faults).unwrap().0;
        for n in 1..=5 {
            assert_eq!(put(&outbox, PAYLOAD), Some(n));
        }
        let after = tempdir().unwrap();
        faults.lose_power(dir.path(), after.path(), survives);
        let (records, length) = extent(after.path(), 1);
        assert!(length > records + 1000);
        let mut follower = Reader::open(after.path()).unwrap();
        assert_eq!((follower.by_ref().count(), follower.damaged_bytes()), (5, 0));
        let (outbox, found) = Outbox::open(config(&after)).unwrap();
        assert_eq!((found.events, found.truncated_bytes, found.damaged.len()), (5, 0, 0));
        assert_eq!(put(&outbox, PAYLOAD), Some(6));
        assert_eq!(follower.next().unwrap().unwrap().sequence, 6);
        assert_eq!(outbox.stats().segments, 1);
    }
}

#[test]
fn a_follower_waits_at_the_zeros_and_goes_on_behind_them() {
    let dir = tempdir().unwrap();
    let outbox = Outbox::open(config(&dir)).unwrap().0;
    let mut follower = Reader::open(dir.path()).unwrap();
    for n in 1..=700 {
        // Not each time: zeros that it has read ahead must not stay zeros for it either.
        if n % 3 == 0 {
            assert!(follower.try_next().unwrap().is_none());
        }
        assert_eq!(put(&outbox, PAYLOAD), Some(n));
        assert_eq!(follower.try_next().unwrap().unwrap().sequence, n);
    }
    assert!(outbox.stats().segments > 1);
    outbox.close().unwrap();
    assert!(follower.try_next().unwrap().is_none());
    assert_eq!(follower.damaged_bytes(), 0);
}

/// Appends one by one; every fault fails at most the append that met it.
fn workload(faults: &Arc<Faults>, config: &OutboxConfig) -> usize {
    let outbox = open(config, faults).unwrap().0;
    let mut acknowledged = Vec::new();
    for size in [10, 700, 20, 300, 300, 300, 40, 1500, 1500, 60, 90] {
        acknowledged.extend(put(&outbox, size));
        assert!(total(&config.dir) <= config.max_bytes);
    }
    let stats = outbox.stats();
    assert_eq!(acknowledged.len() as u64 + stats.failed, 11);
    assert_eq!(stats.appended, acknowledged.len() as u64);
    assert_eq!(stats.events, stats.appended - stats.dropped_by_size);
    let there = read(&config.dir);
    assert!(there == acknowledged[acknowledged.len() - there.len()..], "{there:?}, {acknowledged:?}");
    outbox.close().unwrap();
    assert_eq!(outbox.stats().bytes, total(&config.dir));
    assert_eq!(Outbox::open(config.clone()).unwrap().1.damaged, []);
    acknowledged.len()
}

#[test]
fn a_disk_that_is_full_for_any_operation_costs_at_most_one_append() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let small = |dir: &TempDir| OutboxConfig { segment_bytes: 4096, when_full, ..config(dir) };
        let dir = tempdir().unwrap();
        let undisturbed = Faults::scripted([]);
        assert_eq!(workload(&undisturbed, &small(&dir)), 11);
        for at in 0..undisturbed.operations() - 2 {
            for percent in [0, 50, 99] {
                let dir = tempdir().unwrap();
                let faults = Faults::scripted([(at, Fault::NoSpace { percent })]);
                let kept = workload(&faults, &small(&dir));
                assert!(kept >= 10, "operation {at}, {percent} percent, {when_full:?}: {kept}");
            }
        }
    }
}

#[test]
fn a_disk_that_is_nearly_full_still_takes_what_fits() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let dir = tempdir().unwrap();
        let faults = Faults::scripted([]);
        let outbox = open(&OutboxConfig { when_full, ..config(&dir) }, &faults).unwrap().0;
        faults.set_longest(24 + 100 * 128);
        for n in 1..=100 {
            assert_eq!(put(&outbox, PAYLOAD), Some(n), "{when_full:?}");
        }
        assert!(outbox.append(vec![b'x'; PAYLOAD]).wait().unwrap_err().is_full());
        assert_eq!(extent(dir.path(), 1), (24 + 100 * 128, 24 + 100 * 128));
        assert_eq!((outbox.stats().events, outbox.stats().failed), (100, 1));
    }
}

#[test]
fn zeros_that_do_not_fit_cost_no_append() {
    let dir = tempdir().unwrap();
    // Creation, the records, and then the zeros, which find no space; nor does their truncation.
    let faults = Faults::scripted([(2, Fault::NoSpace { percent: 40 }), (3, Fault::Broken { percent: 0 })]);
    let outbox = open(&config(&dir), &faults).unwrap().0;
    for n in 1..=3 {
        assert_eq!(put(&outbox, PAYLOAD), Some(n));
    }
    assert_eq!((outbox.stats().failed, outbox.stats().error), (0, None));
    assert_eq!(read(dir.path()), [1, 2, 3]);
    outbox.close().unwrap();
    assert_eq!(extent(dir.path(), 1), (24 + 3 * 128, 24 + 3 * 128));
}

#[test]
fn zeros_that_cannot_be_forced_end_the_segment_and_cost_no_append() {
    for fault in [Fault::Broken { percent: 0 }, Fault::Lost] {
        let dir = tempdir().unwrap();
        let faults = Faults::scripted([]);
        let outbox = open(&config(&dir), &faults).unwrap().0;
        // The 34th leaves less than half a step: then the zeros follow, after its acknowledgement.
        for _ in 0..32 {
            put(&outbox, PAYLOAD).unwrap();
        }
        // Two writes and their syncs, then the zeros and theirs.
        faults.fail_in(5, fault);
        for _ in 0..2 {
            put(&outbox, PAYLOAD).unwrap();
        }
        until(|| outbox.stats().error.is_some() || outbox.stats().segments == 2);
        assert_eq!(put(&outbox, PAYLOAD), Some(35));
        let stats = outbox.stats();
        assert_eq!((stats.failed, stats.segments, stats.error), (0, 2, None));
        assert!(read(dir.path()).into_iter().eq(1..=35));
        let (records, length) = extent(dir.path(), 1);
        assert_eq!(records, length);
    }
}

#[test]
fn a_tight_bound_holds_for_the_files_and_keeps_as_much_as_without_zeros() {
    let fill = |durability, when_full| {
        let dir = tempdir().unwrap();
        let bounds = OutboxConfig { max_bytes: MIN_MAX_BYTES, segment_bytes: 4096, ..config(&dir) };
        let outbox = Outbox::open(OutboxConfig { durability, when_full, ..bounds }).unwrap().0;
        for n in 0..300 {
            put(&outbox, 300 + n % 100);
            assert!(total(dir.path()) <= MIN_MAX_BYTES);
        }
        outbox.close().unwrap();
        assert_eq!(outbox.stats().bytes, total(dir.path()));
        read(dir.path())
    };
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let with = fill(Durability::Fsync, when_full);
        assert_eq!(with, fill(Durability::OsBuffered, when_full), "{when_full:?}");
        assert!(with.len() > 100);
    }
}

const RESERVE_MAX: u64 = 1 << 20;

fn reserve_config(dir: &Path) -> OutboxConfig {
    OutboxConfig {
        max_bytes: RESERVE_MAX,
        segment_bytes: 64 << 10,
        keep_committed: Duration::ZERO,
        when_full: WhenFull::Refuse,
        reserve: true,
        ..OutboxConfig::new(dir)
    }
}

/// The reserve follows the segments in steps of this size.
const GRAIN: u64 = (64 << 10) / 8;

/// Bytes of the reserve, all of which are allocated. Blocks are only a lower bound: a file system counts its own
/// metadata (extents) among them.
fn reserved(dir: &Path) -> u64 {
    let Ok(file) = fs::metadata(dir.join("reserve")) else { return 0 };
    if file.blocks() * 512 >= file.len() { file.len() } else { 0 }
}

#[test]
fn segments_and_reserve_together_take_what_the_outbox_may_take() {
    let dir = tempdir().unwrap();
    let (outbox, _) = Outbox::open(reserve_config(dir.path())).unwrap();
    until(|| reserved(dir.path()) >= RESERVE_MAX - (64 << 10));
    let mut last = 0;
    for _ in 0..500 {
        last = outbox.append(vec![b'.'; 1000]).wait().unwrap();
    }
    until(|| (1..=RESERVE_MAX + GRAIN).contains(&(reserved(dir.path()) + outbox.stats().bytes)));
    assert!(
        reserved(dir.path()) + outbox.stats().bytes >= RESERVE_MAX - (64 << 10),
        "{}",
        reserved(dir.path())
    );
    outbox.commit(last).unwrap();
    until(|| reserved(dir.path()) >= RESERVE_MAX - 2 * (64 << 10));
    drop(outbox);
    let (outbox, _) = Outbox::open(OutboxConfig { reserve: false, ..reserve_config(dir.path()) }).unwrap();
    assert!(!dir.path().join("reserve").exists());
    drop(outbox);
}

#[test]
fn a_disk_that_others_have_filled_takes_events_from_the_reserve() {
    let dir = tempdir().unwrap();
    let faults = Faults::scripted([]);
    let (outbox, _) = open(&reserve_config(dir.path()), &faults).unwrap();
    for n in 1..=20 {
        // No space, until the reserve has released some.
        faults.fail_in(0, Fault::NoSpace { percent: 50 });
        assert_eq!(outbox.append(vec![b'.'; 2000]).wait().unwrap(), n);
    }
    assert_eq!(outbox.stats().failed, 0);
}

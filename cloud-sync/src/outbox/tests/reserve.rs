//! The space that only the outbox gets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use super::faults::{Fault, Faults, open};
use crate::outbox::{Outbox, OutboxConfig, WhenFull};

const MAX: u64 = 1 << 20;

fn config(dir: &Path) -> OutboxConfig {
    OutboxConfig {
        max_bytes: MAX,
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

fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn segments_and_reserve_together_take_what_the_outbox_may_take() {
    let dir = tempdir().unwrap();
    let (outbox, _) = Outbox::open(config(dir.path())).unwrap();
    until(|| reserved(dir.path()) >= MAX - (64 << 10));
    let mut last = 0;
    for _ in 0..500 {
        last = outbox.append(vec![b'.'; 1000]).wait().unwrap();
    }
    until(|| (1..=MAX + GRAIN).contains(&(reserved(dir.path()) + outbox.stats().bytes)));
    assert!(reserved(dir.path()) + outbox.stats().bytes >= MAX - (64 << 10), "{}", reserved(dir.path()));
    outbox.commit(last).unwrap();
    until(|| reserved(dir.path()) >= MAX - 2 * (64 << 10));
    drop(outbox);
    let (outbox, _) = Outbox::open(OutboxConfig { reserve: false, ..config(dir.path()) }).unwrap();
    assert!(!dir.path().join("reserve").exists());
    drop(outbox);
}

#[test]
fn a_disk_that_others_have_filled_takes_events_from_the_reserve() {
    let dir = tempdir().unwrap();
    let faults = Faults::scripted([]);
    let (outbox, _) = open(&config(dir.path()), &faults).unwrap();
    for n in 1..=20 {
        // No space, until the reserve has given some up.
        faults.fail_in(0, Fault::NoSpace { percent: 50 });
        assert_eq!(outbox.append(vec![b'.'; 2000]).wait().unwrap(), n);
    }
    assert_eq!(outbox.stats().failed, 0);
}

//! Guarantees of the outbox through its public interface.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use cloud_sync::event::{Event, EventBody, ImageRef, ModelRef, Prediction, Score};
use cloud_sync::outbox::{
    Durability, MIN_MAX_BYTES, Outbox, OutboxConfig, OutboxError, Reader, StoredEvent, WhenFull,
};
use tempfile::tempdir;

fn open(config: &OutboxConfig) -> Outbox {
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!((found.truncated_bytes, found.damaged.len(), found.cursor_lost), (0, 0, false));
    outbox
}

fn small(dir: &Path, when_full: WhenFull) -> OutboxConfig {
    let max_bytes = MIN_MAX_BYTES;
    OutboxConfig {
        max_bytes,
        segment_bytes: 4096,
        when_full,
        durability: Durability::OsBuffered,
        ..OutboxConfig::new(dir)
    }
}

fn texts(events: impl IntoIterator<Item = StoredEvent>) -> Vec<String> {
    events.into_iter().map(|event| String::from_utf8(event.payload).unwrap()).collect()
}

fn all(dir: &Path) -> Vec<StoredEvent> {
    Reader::open(dir).unwrap().collect::<Result<_, _>>().unwrap()
}

fn put(outbox: &Outbox, text: &str) -> Result<u64, OutboxError> {
    outbox.append(text.into()).wait()
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let segments = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "seg"));
    segments.map(|entry| entry.metadata().unwrap().len()).sum()
}

#[test]
fn what_is_appended_is_read_back_in_order_and_the_numbering_goes_on() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig::new(dir.path().join("made/for/it"));
    let before = SystemTime::now() - Duration::from_millis(1);
    let outbox = open(&config);
    assert_eq!(put(&outbox, "one").unwrap(), 1);
    assert_eq!(put(&outbox, "").unwrap(), 2);
    outbox.close().unwrap();
    outbox.close().unwrap();
    assert!(matches!(put(&outbox, "late"), Err(OutboxError::Closed)));
    assert!(matches!(outbox.commit(1), Err(OutboxError::Closed)));

    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!((found.events, found.segments, found.last_sequence), (2, 1, 2));
    assert_eq!(put(&outbox, "three").unwrap(), 3);
    let events = all(&config.dir);
    assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(events.iter().all(|event| event.appended >= before && event.appended <= SystemTime::now()));
    assert_eq!(texts(events), ["one", "", "three"]);
    let stats = outbox.stats();
    assert_eq!((stats.events, stats.backlog, stats.appended, stats.last_sequence), (3, 3, 1, 3));
    assert_eq!((stats.bytes, stats.segments), (disk_bytes(&config.dir), 1));
    assert!(stats.oldest.unwrap() >= before);
    assert!(stats.syncs >= 1 && stats.last_sync <= stats.total_sync);
}

#[test]
fn an_event_survives_the_way_through_the_outbox() {
    let dir = tempdir().unwrap();
    let outbox = open(&OutboxConfig::new(dir.path()));
    let text = String::from;
    let prediction = Prediction {
        request_id: text("r"),
        camera: None,
        model: ModelRef { name: text("fish"), version: text("1"), digest: text("d") },
        image: ImageRef { digest: text("i"), format: text("png"), bytes: 9, width: 3, height: 2 },
        species: text("goldfish"),
        confidence: 0.5,
        predictions: vec![Score { label: text("goldfish"), score: 0.5 }],
        cached: true,
    };
    let event = Event::new("box", EventBody::Prediction(prediction));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(outbox.append_event(&event)).unwrap(), 1);
    assert_eq!(Reader::open(dir.path()).unwrap().tail(1).unwrap()[0].event().unwrap(), event);
}

#[test]
fn appends_that_wait_together_share_an_fsync() {
    let dir = tempdir().unwrap();
    let outbox = open(&OutboxConfig::new(dir.path()));
    let barrier = Barrier::new(16);
    thread::scope(|scope| {
        for worker in 0..16 {
            let (outbox, barrier) = (&outbox, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..25 {
                    let waits: Vec<_> = (0..5).map(|n| outbox.append(vec![worker, round, n])).collect();
                    let sequences: Vec<_> = waits.into_iter().map(|wait| wait.wait().unwrap()).collect();
                    assert!(sequences.is_sorted());
                }
            });
        }
    });
    let stats = outbox.stats();
    assert_eq!((stats.appended, stats.failed), (2000, 0));
    // Appends share fsyncs; nothing enforces the size of a group.
    assert!(stats.syncs < 1500, "{stats:?}");
    let events = all(dir.path());
    assert!(events.iter().map(|event| event.sequence).eq(1..=2000));
    let mut payloads: Vec<_> = events.into_iter().map(|event| event.payload).collect();
    payloads.sort_unstable();
    payloads.dedup();
    assert_eq!(payloads.len(), 2000);
}

#[test]
fn an_append_whose_client_has_gone_harms_nobody() {
    let dir = tempdir().unwrap();
    let outbox = open(&OutboxConfig::new(dir.path()));
    for _ in 0..10 {
        drop(outbox.append(b"gone".to_vec()));
    }
    assert_eq!(put(&outbox, "here").unwrap(), 11);
    drop(outbox.append(b"last".to_vec()));
    drop(outbox);
    assert_eq!(all(dir.path()).len(), 12);
}

#[test]
fn too_many_waiting_appends_are_told_so_at_once() {
    let dir = tempdir().unwrap();
    let outbox = open(&OutboxConfig { max_pending: 2, ..OutboxConfig::new(dir.path()) });
    let waits: Vec<_> = (0..2000).map(|_| outbox.append(vec![0; 100])).collect();
    let results: Vec<_> = waits.into_iter().map(cloud_sync::outbox::Append::wait).collect();
    let busy = results.iter().filter(|r| matches!(r, Err(OutboxError::Busy { max_pending: 2 }))).count();
    assert!(busy > 0);
    assert_eq!(results.iter().filter(|r| r.is_ok()).count() + busy, 2000);
    assert_eq!(all(dir.path()).len(), 2000 - busy);
}

#[test]
fn drop_oldest_keeps_the_newest_within_the_bound_and_counts_the_rest() {
    let dir = tempdir().unwrap();
    let outbox = open(&small(dir.path(), WhenFull::DropOldest));
    for n in 1..=500_u64 {
        assert_eq!(put(&outbox, &format!("{n:500}")).unwrap(), n);
        assert!(disk_bytes(dir.path()) <= MIN_MAX_BYTES);
        if n == 60 {
            outbox.commit(50).unwrap();
        }
    }
    let events = all(dir.path());
    let first = events[0].sequence;
    assert!(events.iter().map(|event| event.sequence).eq(first..=500));
    assert!(events.len() > 100);
    let stats = outbox.stats();
    assert_eq!((stats.removed_committed, stats.dropped_by_size), (50, first - 51));
    assert_eq!((stats.events, stats.backlog), (501 - first, 501 - first));
    assert_eq!(stats.bytes, disk_bytes(dir.path()));
}

#[test]
fn refuse_keeps_everything_until_the_consumer_moves_on() {
    let dir = tempdir().unwrap();
    let outbox = open(&small(dir.path(), WhenFull::Refuse));
    let refused = (1..).find_map(|n| put(&outbox, &format!("{n:500}")).err()).unwrap();
    let OutboxError::Bound { max_bytes: MIN_MAX_BYTES, needed, .. } = refused else { panic!("{refused}") };
    assert!(needed >= 500);
    let last = outbox.last_sequence();
    assert_eq!(all(dir.path()).len() as u64, last);
    assert!(put(&outbox, &"x".repeat(500)).unwrap_err().is_full());
    assert!(outbox.stats().error.is_some());

    outbox.commit(last / 2).unwrap();
    assert_eq!(put(&outbox, &"x".repeat(500)).unwrap(), last + 1);
    let stats = outbox.stats();
    assert_eq!((stats.dropped_by_size, stats.dropped_by_age, stats.error), (0, 0, None));
    assert!(stats.removed_committed > 0);
    assert!(all(dir.path())[0].sequence <= last / 2 + 1);
}

#[test]
fn events_past_their_age_go_without_traffic_and_the_numbering_stays() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig { max_age: Duration::from_millis(300), ..OutboxConfig::new(dir.path()) };
    let outbox = open(&config);
    // From before the appends: their age counts while the disk still writes them.
    let start = Instant::now();
    put(&outbox, "one").unwrap();
    put(&outbox, "two").unwrap();
    while outbox.stats().events > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", outbox.stats());
        thread::sleep(Duration::from_millis(10));
    }
    assert!(start.elapsed() >= Duration::from_millis(250), "gone before their time");
    assert_eq!((outbox.stats().dropped_by_age, outbox.stats().oldest), (2, None));
    assert_eq!(all(dir.path()), []);
    drop(outbox);
    let outbox = open(&config);
    assert_eq!(put(&outbox, "three").unwrap(), 3);
}

#[test]
fn committed_events_go_after_their_own_time() {
    let dir = tempdir().unwrap();
    let keep_committed = Duration::from_millis(50);
    let outbox = open(&OutboxConfig { keep_committed, ..small(dir.path(), WhenFull::Refuse) });
    for n in 1..=20 {
        put(&outbox, &format!("{n:500}")).unwrap();
    }
    thread::sleep(Duration::from_millis(100));
    assert_eq!(outbox.stats().events, 20, "not before they are committed");
    outbox.commit(20).unwrap();
    let start = Instant::now();
    while outbox.stats().segments > 1 {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((outbox.stats().dropped_by_age, outbox.stats().backlog), (0, 0));
}

#[test]
fn the_cursor_is_durable_rises_only_and_stays_within_what_there_is() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig::new(dir.path());
    let outbox = open(&config);
    for n in 1..=5 {
        put(&outbox, &n.to_string()).unwrap();
    }
    assert!(matches!(outbox.commit(6), Err(OutboxError::Commit { upto: 6, last: 5 })));
    outbox.commit(3).unwrap();
    outbox.commit(2).unwrap();
    assert_eq!((outbox.committed(), outbox.stats().backlog), (3, 2));
    drop(outbox);
    let outbox = open(&config);
    assert_eq!((outbox.committed(), outbox.stats().backlog), (3, 2));
    drop(outbox);

    fs::write(dir.path().join("cursor"), "1 5 00000000\n").unwrap();
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert!(found.cursor_lost);
    assert_eq!((outbox.committed(), outbox.stats().backlog), (0, 5));
    outbox.commit(5).unwrap();
    drop(outbox);

    // Events that vanished before a cursor: their sequences must not be assigned again.
    for entry in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|e| e == "seg") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(put(&open(&config), "six").unwrap(), 6);
}

#[test]
fn a_second_writer_is_refused_by_name_until_the_first_has_gone() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig::new(dir.path());
    let outbox = open(&config);
    let error = Outbox::open(config.clone()).unwrap_err();
    assert!(matches!(error, OutboxError::Locked { .. }));
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    put(&outbox, "still here").unwrap();
    outbox.close().unwrap();
    assert_eq!(open(&config).last_sequence(), 1);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let error = Outbox::open(OutboxConfig::new(file.join("outbox"))).unwrap_err();
    assert!(matches!(error, OutboxError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains(file.join("outbox").to_str().unwrap()), "{error}");
    let error = Reader::open(dir.path().join("absent")).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

#[test]
fn settings_out_of_bounds_are_named_with_value_and_bound() {
    let good = OutboxConfig::new("never-made");
    let cases = [
        (OutboxConfig { max_bytes: 1000, ..good.clone() }, ["max_bytes", "1000", "65536"]),
        (OutboxConfig { segment_bytes: 12, ..good.clone() }, ["segment_bytes", "12", "4096"]),
        (OutboxConfig { max_age: Duration::ZERO, ..good.clone() }, ["max_age", "0 s", "more"]),
        (OutboxConfig { max_pending: 0, ..good }, ["max_pending", "0", "1"]),
    ];
    for (config, words) in cases {
        let error = Outbox::open(config).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert!(!Path::new("never-made").exists());
}

#[test]
fn the_largest_event_fits_and_one_byte_more_is_refused() {
    let dir = tempdir().unwrap();
    let outbox = open(&small(dir.path(), WhenFull::Refuse));
    let OutboxError::TooLarge { max, .. } = outbox.append(vec![1; 1 << 20]).wait().unwrap_err() else {
        panic!("too large")
    };
    assert_eq!(max, 2000);
    assert!(matches!(
        outbox.append(vec![1; max + 1]).wait(),
        Err(OutboxError::TooLarge { bytes: 2001, max: 2000 })
    ));
    outbox.append(vec![1; max]).wait().unwrap();
    let dir = tempdir().unwrap();
    let outbox = open(&OutboxConfig::new(dir.path()));
    outbox.append(vec![7; 1 << 20]).wait().unwrap();
    assert!(outbox.append(vec![7; (1 << 20) + 1]).wait().is_err());
    assert_eq!(all(dir.path())[0].payload, vec![7; 1 << 20]);
}

#[test]
fn the_tail_is_the_last_events_across_segments() {
    let dir = tempdir().unwrap();
    let outbox = open(&small(dir.path(), WhenFull::DropOldest));
    assert_eq!(Reader::open(dir.path()).unwrap().tail(3).unwrap(), []);
    for n in 1..=20 {
        put(&outbox, &format!("{n:600}")).unwrap();
    }
    assert!(outbox.stats().segments > 2);
    for count in [0, 1, 5, 13, 20, 50] {
        let tail = Reader::open(dir.path()).unwrap().tail(count).unwrap();
        let wanted = (21 - (count as u64).min(20))..=20;
        assert!(tail.iter().map(|event| event.sequence).eq(wanted), "{count}");
    }
    let mut reader = Reader::open(dir.path()).unwrap();
    for from in [7, 1, 20, 12] {
        reader.seek(from);
        assert_eq!(reader.try_next().unwrap().unwrap().sequence, from);
    }
    reader.seek(21);
    assert_eq!(reader.try_next().unwrap(), None);
}

#[test]
fn a_follower_sees_everything_that_a_busy_writer_acknowledges() {
    let dir = tempdir().unwrap();
    let outbox = open(&OutboxConfig { segment_bytes: 4096, ..OutboxConfig::new(dir.path()) });
    let mut follower = Reader::open(dir.path()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..100 {
                let waits: Vec<_> = (0..7).map(|n| outbox.append(vec![n; 100 + round])).collect();
                waits.into_iter().for_each(|wait| assert!(wait.wait().is_ok()));
            }
        });
        for expected in 1..=700 {
            let event = follower.next_wait(Duration::from_secs(20)).unwrap().unwrap();
            assert_eq!(event.sequence, expected);
        }
    });
    assert_eq!(follower.damaged_bytes(), 0);
    let start = Instant::now();
    assert_eq!(follower.next_wait(Duration::from_millis(60)).unwrap(), None);
    assert!(start.elapsed() >= Duration::from_millis(60));
    // And over a restart.
    drop(outbox);
    let outbox = open(&OutboxConfig { segment_bytes: 4096, ..OutboxConfig::new(dir.path()) });
    put(&outbox, "after").unwrap();
    assert_eq!(follower.next().unwrap().unwrap().sequence, 701);
}

#[test]
fn a_slow_follower_goes_on_behind_what_retention_has_deleted() {
    let dir = tempdir().unwrap();
    let outbox = open(&small(dir.path(), WhenFull::DropOldest));
    put(&outbox, &format!("{:500}", 1)).unwrap();
    let mut follower = Reader::open(dir.path()).unwrap();
    assert_eq!(follower.try_next().unwrap().unwrap().sequence, 1);
    for n in 2..=400 {
        put(&outbox, &format!("{n:500}")).unwrap();
    }
    let rest: Vec<u64> = follower.by_ref().map(|event| event.unwrap().sequence).collect();
    // It still holds the first segment open; then the existing ones follow.
    assert!(rest.is_sorted() && rest.len() < 399, "{rest:?}");
    assert_eq!(rest.last(), Some(&400));
    let there: Vec<u64> = all(dir.path()).iter().map(|event| event.sequence).collect();
    assert!(rest.ends_with(&there));
}

//! A log that lost its end is another log, and events of one sequence in two histories differ.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::outbox::{Durability, NewLog, Outbox, OutboxConfig};

fn put(outbox: &Outbox, text: &str) -> u64 {
    outbox.append(text.into()).wait().unwrap()
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn remove_segments(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|e| e == "seg") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_log_keeps_its_id_over_restarts_and_no_two_have_the_same() {
    for durability in [Durability::Fsync, Durability::OsBuffered] {
        let dirs = [tempdir().unwrap(), tempdir().unwrap()];
        let open = |at: usize| {
            let config = OutboxConfig { durability, ..OutboxConfig::new(dirs[at].path()) };
            Outbox::open(config).unwrap()
        };
        let (first, found) = open(0);
        assert_eq!(found.new_log, None);
        let id = first.log_id();
        assert_ne!(id, open(1).0.log_id());
        put(&first, "one");
        drop(first);
        let (again, found) = open(0);
        assert_eq!((again.log_id(), found.new_log), (id, None));
        assert_eq!(id.to_string().len(), 26);
    }
}

#[test]
fn an_end_that_is_missing_and_an_id_that_is_missing_make_another_log() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig::new(dir.path());
    let (outbox, _) = Outbox::open(config.clone()).unwrap();
    let id = outbox.log_id();
    put(&outbox, "one");
    put(&outbox, "two");
    outbox.commit(2).unwrap();
    drop(outbox);
    remove_segments(dir.path());
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!(found.new_log, Some(NewLog::EndLost));
    let second = outbox.log_id();
    assert_ne!(second, id);
    assert_eq!(put(&outbox, "three"), 3);
    drop(outbox);
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!((outbox.log_id(), found.new_log), (second, None));
    drop(outbox);
    for content in [None, Some("1 nonsense")] {
        match content {
            None => fs::remove_file(dir.path().join("log")).unwrap(),
            Some(content) => fs::write(dir.path().join("log"), content).unwrap(),
        }
        let (outbox, found) = Outbox::open(config.clone()).unwrap();
        assert_eq!(found.new_log, Some(NewLog::IdLost));
        assert_ne!(outbox.log_id(), second);
    }
}

#[test]
fn power_that_fails_while_events_are_only_buffered_makes_another_log() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig { durability: Durability::OsBuffered, ..OutboxConfig::new(dir.path()) };
    let (outbox, _) = Outbox::open(config.clone()).unwrap();
    put(&outbox, "one");
    // The process ends without closing: first on the same boot of the machine, then on another.
    let line = fs::read_to_string(dir.path().join("log")).unwrap();
    let id = outbox.log_id();
    drop(outbox);
    fs::write(dir.path().join("log"), &line).unwrap();
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!((outbox.log_id(), found.new_log), (id, None));
    drop(outbox);
    let body = format!("1 {id} 00000000-0000-0000-0000-000000000000");
    let sum = crc32fast::hash(body.as_bytes());
    fs::write(dir.path().join("log"), format!("{body} {sum:08x}\n")).unwrap();
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!(found.new_log, Some(NewLog::PowerLost));
    assert_ne!(outbox.log_id(), id);
}

#[test]
fn an_older_state_that_went_on_differs_in_its_fingerprints() {
    let (dir, older) = (tempdir().unwrap(), tempdir().unwrap());
    let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path())).unwrap();
    put(&outbox, "shared");
    drop(outbox);
    copy(dir.path(), older.path());
    let [original, restored] = [&dir, &older].map(|dir| {
        let (outbox, found) = Outbox::open(OutboxConfig::new(dir.path())).unwrap();
        assert_eq!(found.new_log, None, "the copy cannot know");
        put(&outbox, &format!("of {}", dir.path().display()));
        outbox
    });
    assert_eq!(original.fingerprint(1).unwrap().unwrap(), restored.fingerprint(1).unwrap().unwrap());
    assert_ne!(original.fingerprint(2).unwrap().unwrap(), restored.fingerprint(2).unwrap().unwrap());
    assert_eq!((original.fingerprint(0).unwrap(), original.fingerprint(3).unwrap()), (None, None));
}

//! What is sent: everything, once, in order, soon; across restarts, and by two boxes of the same name.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::broker::{committed_when, config_of, ids_when, make_topic};
use crate::restores::assert_each_once;
use crate::support::{BOUND, append, drain, event, open, start, summary, until};

fn kafka() -> cloud_sync::kafka::KafkaConfig {
    let config = config_of(test_services::shared());
    make_topic(&config, &config.results_topic, 3, &[]);
    config
}

#[test]
fn every_event_arrives_once_and_each_cameras_in_order_while_others_are_appended() {
    let (dir, kafka) = (tempdir().unwrap(), kafka());
    let outbox = open(dir.path());
    let before = append(&outbox, (0..3000).map(|n| event(n, Some(&format!("dock-{}", n % 5)))));
    let uplink = start(dir.path(), &kafka, &outbox);
    let mut expected = thread::scope(|scope| {
        let appenders: Vec<_> = (0..3)
            .map(|camera| {
                let outbox = &outbox;
                scope.spawn(move || {
                    let camera = format!("live-{camera}");
                    let mut ids = Vec::new();
                    for n in 0..20 {
                        ids.extend(append(outbox, (0..50).map(|k| event(n * 50 + k, Some(&camera)))));
                    }
                    ids
                })
            })
            .collect();
        appenders.into_iter().flat_map(|appender| appender.join().unwrap()).collect::<Vec<_>>()
    });
    expected.extend(before);
    expected.extend(append(&outbox, [summary("batch-1"), summary("")]));
    let status = drain(&uplink, &outbox);
    assert_eq!((status.backlog, status.dead_lettered), (0, 0));
    // A group whose commit was not answered, and had arrived, is not counted.
    assert!((1..=expected.len() as u64).contains(&status.sent), "{status:?}");
    assert_eq!((status.lost, status.oldest, status.up), (0, None, Some(true)));
    let seen = committed_when(&kafka, &kafka.results_topic, expected.len());
    let mut found: Vec<_> = seen.iter().map(|seen| seen.id.clone()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    for camera in ["dock-0", "dock-4", "live-0", "live-1", "live-2"] {
        let of: Vec<_> = seen.iter().filter(|seen| seen.key == camera).collect();
        let numbers: Vec<String> = (of.iter())
            .map(|seen| {
                let json: serde_json::Value = serde_json::from_slice(&seen.payload).unwrap();
                json["request_id"].as_str().unwrap().to_owned()
            })
            .collect();
        assert!(of.len() >= 600 && numbers.is_sorted(), "{camera}: {} events", of.len());
        assert!(of.iter().all(|seen| seen.partition == of[0].partition), "{camera} is on two partitions");
    }
    let keys: Vec<_> = seen.iter().map(|seen| seen.key.as_str()).collect();
    assert!(keys.contains(&"batch-1") && keys.contains(&"box-1"));
    // The cursor follows, and is up to date after a stop.
    let begun = Instant::now();
    while outbox.committed() < outbox.last_sequence() {
        assert!(begun.elapsed() < BOUND);
        thread::sleep(Duration::from_millis(50));
    }
    assert!(uplink.stop(BOUND));
}

#[test]
fn a_lone_event_leaves_soon() {
    let (dir, kafka) = (tempdir().unwrap(), kafka());
    let outbox = open(dir.path());
    let uplink = start(dir.path(), &kafka, &outbox);
    append(&outbox, [event(0, None)]);
    drain(&uplink, &outbox);
    let mut waits: Vec<_> = (1..8)
        .map(|n| {
            append(&outbox, [event(n, None)]);
            let begun = Instant::now();
            drain(&uplink, &outbox);
            begun.elapsed()
        })
        .collect();
    waits.sort();
    // The poll interval of 100 ms and a transaction. The fastest, because the machine may delay the others.
    assert!(waits[0] < Duration::from_secs(5), "{waits:?}");
}

#[test]
fn a_crash_between_publishing_and_the_cursor_sends_nothing_twice() {
    let (dir, kafka) = (tempdir().unwrap(), kafka());
    let outbox = open(dir.path());
    let mut expected = append(&outbox, (0..500).map(|n| event(n, Some("dock"))));
    let uplink = start(dir.path(), &kafka, &outbox);
    drain(&uplink, &outbox);
    assert!(uplink.stop(BOUND));
    assert_eq!(outbox.committed(), outbox.last_sequence());
    outbox.close().unwrap();
    // The result of such a crash: the topic has the events, the outbox does not know it.
    fs::remove_file(dir.path().join("outbox/cursor")).unwrap();
    let outbox = open(dir.path());
    assert_eq!(outbox.committed(), 0);
    expected.extend(append(&outbox, (500..520).map(|n| event(n, Some("dock")))));
    let uplink = start(dir.path(), &kafka, &outbox);
    let status = drain(&uplink, &outbox);
    assert!(status.sent <= 20, "{status:?}");
    expected.sort();
    assert_eq!(ids_when(&kafka, &kafka.results_topic, expected.len()), expected);
}

#[test]
fn neither_a_box_of_the_same_name_nor_a_wiped_one_is_taken_for_the_other() {
    let kafka = kafka();
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let mut expected = Vec::new();
    let boxes: Vec<_> = [&one, &two]
        .into_iter()
        .map(|dir| {
            let outbox = open(dir.path());
            expected.extend(append(&outbox, (0..50).map(|n| event(n, None))));
            (start(dir.path(), &kafka, &outbox), outbox)
        })
        .collect();
    for (uplink, outbox) in &boxes {
        drain(uplink, outbox);
        assert!(uplink.stop(BOUND));
        outbox.close().unwrap();
    }
    fs::remove_dir_all(one.path().join("outbox")).unwrap();
    let outbox = open(one.path());
    expected.extend(append(&outbox, (0..30).map(|n| event(n, None))));
    let uplink = start(one.path(), &kafka, &outbox);
    drain(&uplink, &outbox);
    expected.sort();
    assert_eq!(ids_when(&kafka, &kafka.results_topic, expected.len()), expected);
}

#[test]
fn an_outbox_that_lost_its_end_goes_on_behind_it() {
    let (dir, kafka) = (tempdir().unwrap(), kafka());
    let outbox = open(dir.path());
    let mut expected = append(&outbox, (0..100).map(|n| event(n, None)));
    let uplink = start(dir.path(), &kafka, &outbox);
    drain(&uplink, &outbox);
    assert!(uplink.stop(BOUND));
    outbox.close().unwrap();
    // As a loss of power can leave an outbox that is not synced.
    let segment = dir.path().join("outbox/00000000000000000001.seg");
    let file = fs::File::options().write(true).open(&segment).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    fs::remove_file(dir.path().join("outbox/cursor")).unwrap();
    let outbox = open(dir.path());
    assert!(outbox.last_sequence() < 100);
    let uplink = start(dir.path(), &kafka, &outbox);
    until(&uplink, |status| status.up == Some(true));
    expected.extend(append(&outbox, (200..300).map(|n| event(n, None))));
    drain(&uplink, &outbox);
    // The new identity of the outbox is recorded by an event.
    assert_each_once(&kafka, &expected, "an outbox that lost its end");
}

//! Data directories that are restored to an earlier state, and copies of them: nothing is lost, nothing is sent
//! twice.
//!
//! `make test` does a few rounds; `WEIR_FAULT_ROUNDS=20` does as many of each (`make faults`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cloud_sync::kafka::KafkaConfig;
use cloud_sync::outbox::Outbox;
use cloud_sync::uplink::{Uplink, UplinkConfig};
use tempfile::tempdir;

use crate::broker::{committed_when, config_of, make_topic};
use crate::support::{BOUND, append, config, drain, event, open, start, start_with, until};

fn rounds() -> usize {
    std::env::var("WEIR_FAULT_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap())
}

fn kafka() -> KafkaConfig {
    let config = config_of(test_services::shared());
    make_topic(&config, &config.results_topic, 3, &[]);
    config
}

/// Replaces the files of `to` by those of `from`. The directory itself stays.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(to).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn events(from: usize, count: usize) -> impl Iterator<Item = cloud_sync::event::Event> {
    (from..from + count).map(|n| event(n, Some("dock")))
}

/// Each of `expected` is in the topic once, and beside them only the outboxes' own events.
pub(crate) fn assert_each_once(kafka: &KafkaConfig, expected: &[String], what: &str) {
    let mut times: BTreeMap<String, usize> = expected.iter().map(|id| (id.clone(), 0)).collect();
    for seen in committed_when(kafka, &kafka.results_topic, expected.len()) {
        match times.get_mut(&seen.id) {
            Some(times) => *times += 1,
            None => {
                let json: serde_json::Value = serde_json::from_slice(&seen.payload).unwrap();
                assert_eq!(json["kind"], "outbox", "{what}: {json}");
            }
        }
    }
    let missing = times.values().filter(|times| **times == 0).count();
    let doubled = times.values().filter(|times| **times > 1).count();
    assert_eq!((missing, doubled), (0, 0), "{what}: of {} events missing, doubled", expected.len());
}

fn end(uplink: &Uplink, outbox: &Outbox) {
    assert!(uplink.stop(BOUND));
    outbox.close().unwrap();
}

#[test]
fn a_directory_that_came_back_as_it_was_earlier_loses_and_doubles_nothing() {
    let rounds = rounds();
    let mut events_in_all = 0;
    for round in 0..rounds {
        let (sent_before, broker_first, lost_cursor) = (round & 1 == 0, round & 2 == 0, round & 4 != 0);
        let what = format!("round {round}: sent before {sent_before}, broker first {broker_first}");
        let (dir, image, kafka) = (tempdir().unwrap(), tempdir().unwrap(), kafka());
        let folder = dir.path().join("outbox");
        let outbox = open(dir.path());
        let mut expected = append(&outbox, events(0, 50));
        if sent_before {
            let uplink = start(dir.path(), &kafka, &outbox);
            drain(&uplink, &outbox);
            assert!(uplink.stop(BOUND));
        } else {
            // It has its identity, and nothing else.
            let uplink = start(dir.path(), &crate::broker::nobody(), &outbox);
            assert!(uplink.stop(BOUND));
        }
        outbox.close().unwrap();
        copy(&folder, image.path());

        let outbox = open(dir.path());
        expected.extend(append(&outbox, events(50, 100)));
        let uplink = start(dir.path(), &kafka, &outbox);
        drain(&uplink, &outbox);
        end(&uplink, &outbox);

        copy(image.path(), &folder);
        if lost_cursor && folder.join("cursor").exists() {
            fs::remove_file(folder.join("cursor")).unwrap();
        }
        let outbox = open(dir.path());
        assert_eq!(outbox.last_sequence(), 50);
        let uplink = if broker_first {
            let uplink = start(dir.path(), &kafka, &outbox);
            until(&uplink, |status| status.up == Some(true));
            expected.extend(append(&outbox, events(150, 150)));
            uplink
        } else {
            expected.extend(append(&outbox, events(150, 150)));
            start(dir.path(), &kafka, &outbox)
        };
        let status = drain(&uplink, &outbox);
        assert_eq!((status.renewed, status.lost), (1, 0), "{what}");
        end(&uplink, &outbox);
        assert_each_once(&kafka, &expected, &what);

        // The new identity stays.
        let outbox = open(dir.path());
        expected.extend(append(&outbox, events(300, 20)));
        let uplink = start(dir.path(), &kafka, &outbox);
        assert_eq!(drain(&uplink, &outbox).renewed, 0, "{what}");
        end(&uplink, &outbox);
        assert_each_once(&kafka, &expected, &what);
        events_in_all += expected.len();
    }
    println!("summary: {rounds} restores: {events_in_all} events, 0 missing, 0 twice");
}

#[test]
fn two_live_boxes_from_one_image_lose_and_double_nothing() {
    let rounds = rounds();
    let (mut fenced, mut events_in_all) = (0, 0);
    for round in 0..rounds {
        let (sent_before, recognised) = (round & 1 == 0, round & 2 == 0);
        let what = format!("round {round}: sent before {sent_before}, recognised {recognised}");
        let (dirs, kafka) = ([tempdir().unwrap(), tempdir().unwrap()], kafka());
        let folders = dirs.each_ref().map(|dir| dir.path().join("outbox"));
        let outbox = open(dirs[0].path());
        let mut expected = append(&outbox, events(0, 100));
        let of = if sent_before { kafka.clone() } else { crate::broker::nobody() };
        let uplink = start(dirs[0].path(), &of, &outbox);
        if sent_before {
            drain(&uplink, &outbox);
            // These are in both copies and were not sent.
            assert!(uplink.stop(BOUND));
            expected.extend(append(&outbox, events(100, 60)));
        }
        end(&uplink, &outbox);
        copy(&folders[0], &folders[1]);
        if !recognised {
            // As if it were another disk of the same machine with the same inode.
            let identity = fs::read_to_string(folders[1].join("identity")).unwrap();
            fs::write(folders[1].join("identity"), identity.lines().next().unwrap()).unwrap();
        }
        let boxes: Vec<(Uplink, Arc<Outbox>)> = (dirs.iter())
            .map(|dir| {
                let outbox = open(dir.path());
                let small = UplinkConfig { group_events: 7, ..config(dir.path()) };
                (start_with(small, &kafka, &outbox), outbox)
            })
            .collect();
        let appended = thread::scope(|scope| {
            let appenders: Vec<_> = (boxes.iter())
                .map(|(_, outbox)| {
                    scope.spawn(|| {
                        let mut ids = Vec::new();
                        for n in 0..20 {
                            ids.extend(append(outbox, events(1000 + n * 10, 10)));
                            thread::sleep(Duration::from_millis(20));
                        }
                        ids
                    })
                })
                .collect();
            appenders.into_iter().flat_map(|appender| appender.join().unwrap()).collect::<Vec<_>>()
        });
        expected.extend(appended);
        let statuses: Vec<_> = boxes.iter().map(|(uplink, outbox)| drain(uplink, outbox)).collect();
        for (uplink, outbox) in &boxes {
            end(uplink, outbox);
        }
        fenced += statuses.iter().map(|status| status.fenced).sum::<u64>();
        let renewed = statuses.iter().map(|status| status.renewed).collect::<Vec<_>>();
        // The copy is detected at once; otherwise the second one would find the other's history.
        assert_eq!(renewed.iter().sum::<u64>(), 1, "{what}: {renewed:?}");
        assert!(!recognised || renewed == [0, 1], "{what}: {renewed:?}");
        assert_each_once(&kafka, &expected, &what);
        events_in_all += expected.len();
    }
    println!("summary: {rounds} clones ({fenced} times fenced): {events_in_all} events, 0 missing, 0 twice");
}

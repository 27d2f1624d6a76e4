//! Events that cannot be published: they go to the dead letters and block nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloud_sync::event::{Event, EventBody};
use serde_json::{Map, Value};
use tempfile::tempdir;

use crate::broker::{config_of, ids_when, make_topic, set_topic};
use crate::support::{BOUND, append, config, drain, event, open, start, start_with, until};
use cloud_sync::uplink::UplinkConfig;

fn letters(dir: &Path) -> BTreeMap<u64, (String, Vec<u8>)> {
    let mut letters = BTreeMap::new();
    for entry in fs::read_dir(dir.join("dead")).unwrap() {
        for line in fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            let letter: Value = serde_json::from_str(line).unwrap();
            let payload = STANDARD.decode(letter["payload_base64"].as_str().unwrap()).unwrap();
            let reason = letter["reason"].as_str().unwrap().to_owned();
            assert!(letters.insert(letter["sequence"].as_u64().unwrap(), (reason, payload)).is_none());
        }
    }
    letters
}

#[test]
fn poison_goes_to_the_dead_letters_and_its_neighbours_arrive() {
    let dir = tempdir().unwrap();
    let kafka = config_of(test_services::shared());
    let topic = [("max.message.bytes", "100000"), ("compression.type", "uncompressed")];
    make_topic(&kafka, &kafka.results_topic, 3, &topic);
    let outbox = open(dir.path());
    let mut expected = append(&outbox, (0..20).map(|n| event(n, Some("dock"))));
    let not_json = outbox.append(b"\xff\x00 not json".to_vec()).wait().unwrap();
    expected.extend(append(&outbox, (20..40).map(|n| event(n, Some("dock")))));
    // Incompressible, so the topic's limit applies to what arrives.
    let noise: Vec<u8> = (0..300_000).map(|_| fastrand::u8(..)).collect();
    let fields = Map::from_iter([
        ("kind".to_owned(), Value::from("huge")),
        ("noise".to_owned(), Value::from(STANDARD.encode(noise))),
    ]);
    let huge = Event::new("box-1", EventBody::Unknown(fields));
    let too_large = outbox.append_event(&huge).wait().unwrap();
    expected.extend(append(&outbox, (40..60).map(|n| event(n, Some("dock")))));
    let empty = outbox.append(Vec::new()).wait().unwrap();
    let uplink = start(dir.path(), &kafka, &outbox);
    let status = drain(&uplink, &outbox);
    assert_eq!((status.dead_lettered, status.dead_letters_dropped), (3, 0));
    // A group whose commit was not answered, and had arrived, is not counted.
    assert!(status.sent <= 60, "{status:?}");
    expected.sort();
    assert_eq!(ids_when(&kafka, &kafka.results_topic, expected.len()), expected);
    let letters = letters(dir.path());
    assert_eq!(letters.keys().copied().collect::<Vec<_>>(), [not_json, too_large, empty]);
    assert!(letters[&not_json].0.starts_with("not a JSON object: "), "{}", letters[&not_json].0);
    assert_eq!(letters[&not_json].1, b"\xff\x00 not json");
    let (reason, payload) = &letters[&too_large];
    assert!(reason.contains("too large") || reason.contains("larger than allowed"), "{reason}");
    assert!(reason.contains(&huge.id.to_string()), "{reason}");
    assert_eq!(payload, &huge.to_json().unwrap());
}

#[test]
fn nothing_but_poison_does_not_come_again_after_a_restart() {
    let dir = tempdir().unwrap();
    let kafka = config_of(test_services::shared());
    make_topic(&kafka, &kafka.results_topic, 1, &[]);
    let outbox = open(dir.path());
    for _ in 0..3 {
        outbox.append(b"[]".to_vec()).wait().unwrap();
    }
    let uplink = start(dir.path(), &kafka, &outbox);
    let status = drain(&uplink, &outbox);
    assert_eq!((status.sent, status.dead_lettered, status.backlog), (0, 3, 0));
    assert!(uplink.stop(crate::support::BOUND));
    let uplink = start(dir.path(), &kafka, &outbox);
    let expected = append(&outbox, [event(1, None)]);
    assert_eq!(drain(&uplink, &outbox).dead_lettered, 0);
    assert_eq!(letters(dir.path()).len(), 3);
    assert_eq!(ids_when(&kafka, &kafka.results_topic, expected.len()), expected);
}

#[test]
fn a_topic_that_refuses_everything_stops_the_uplink_and_the_backlog_stays() {
    let dir = tempdir().unwrap();
    let kafka = config_of(test_services::shared());
    let topic = [("max.message.bytes", "200"), ("compression.type", "uncompressed")];
    make_topic(&kafka, &kafka.results_topic, 1, &topic);
    let outbox = open(dir.path());
    let appended = append(&outbox, (0..30).map(|n| event(n, Some("dock"))));
    let config = UplinkConfig { max_rejections: 5, ..config(dir.path()) };
    let uplink = start_with(config, &kafka, &outbox);
    let status = until(&uplink, |status| {
        status.last_error.as_ref().is_some_and(|text| text.contains("has refused 5 events in a row"))
    });
    assert_eq!((status.dead_lettered, status.sent, status.up), (5, 0, Some(false)));
    assert_eq!((outbox.committed(), letters(dir.path()).len()), (0, 5));
    set_topic(&kafka, &kafka.results_topic, &[("max.message.bytes", "1000000")]);
    let status = drain(&uplink, &outbox);
    assert_eq!(status.dead_lettered, 5);
    assert!(status.sent <= 25, "{status:?}");
    let mut found = ids_when(&kafka, &kafka.results_topic, 25);
    found.extend(letters(dir.path()).into_values().map(|(_, payload)| {
        let event: Value = serde_json::from_slice(&payload).unwrap();
        event["id"].as_str().unwrap().to_owned()
    }));
    found.sort();
    let mut expected = appended;
    expected.sort();
    assert_eq!(found, expected);
    assert!(uplink.stop(BOUND));
}

//! A broker that is unavailable, refuses, or recovers; and an outbox that reaches its limit.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::KafkaConfig;
use cloud_sync::outbox::{Durability, MIN_MAX_BYTES, Outbox, OutboxConfig};
use cloud_sync::secret::Secret;
use cloud_sync::uplink::{Uplink, UplinkConfig};
use tempfile::tempdir;
use test_services::Services;

use crate::broker::{config_of, ids_when, make_topic, nobody};
use crate::support::{BOUND, append, config, drain, event, open, start, start_with, until};

#[test]
fn a_broker_that_stops_and_comes_back_during_load_loses_and_doubles_nothing() {
    let services = Services::own(&["kafka"]);
    let kafka = config_of(&services);
    make_topic(&kafka, &kafka.results_topic, 3, &[]);
    let dir = tempdir().unwrap();
    let outbox = open(dir.path());
    services.stop("kafka");

    // Started without a broker: the events wait, and the status says why and since when.
    let mut expected = append(&outbox, (0..200).map(|n| event(n, Some("dock-1"))));
    let uplink = start(dir.path(), &kafka, &outbox);
    let status = until(&uplink, |status| status.up == Some(false) && status.oldest.is_some());
    assert_eq!((status.backlog, status.sent), (200, 0));
    assert!(status.oldest.unwrap() < BOUND && status.since.is_some() && status.bytes > 100_000);
    assert!(status.last_error.as_ref().unwrap().contains(&kafka.bootstrap_servers), "{status:?}");
    services.start("kafka");
    let status = drain(&uplink, &outbox);
    assert_eq!((status.backlog, status.oldest, status.up), (0, None, Some(true)));
    // A group whose commit was not answered, and had arrived, is not counted.
    assert!(status.sent <= 200, "{status:?}");

    // Killed and stopped in the middle of appending.
    let late = Instant::now() + Duration::from_secs(12);
    let appended = thread::scope(|scope| {
        let appender = scope.spawn(|| {
            let mut ids = Vec::new();
            while Instant::now() < late {
                let n = ids.len();
                ids.extend(append(&outbox, (n..n + 20).map(|n| event(n, Some("dock-2")))));
                thread::sleep(Duration::from_millis(10));
            }
            ids
        });
        thread::sleep(Duration::from_secs(1));
        services.kill("kafka");
        thread::sleep(Duration::from_secs(1));
        services.start("kafka");
        thread::sleep(Duration::from_secs(1));
        services.stop("kafka");
        services.start("kafka");
        appender.join().unwrap()
    });
    let appended_count = appended.len() as u64;
    expected.extend(appended);
    let status = drain(&uplink, &outbox);
    assert_eq!((status.lost, status.dead_lettered, status.backlog), (0, 0, 0));
    // A group whose outcome was not known, and had arrived, is not counted again.
    assert!(status.sent <= 200 + appended_count);
    expected.sort();
    assert_eq!(ids_when(&kafka, &kafka.results_topic, expected.len()), expected);
    assert!(uplink.stop(BOUND));
}

#[test]
fn what_the_outbox_must_delete_is_counted_as_lost_and_an_end_is_not_held_up() {
    let dir = tempdir().unwrap();
    let outbox = OutboxConfig {
        max_bytes: MIN_MAX_BYTES,
        segment_bytes: 4096,
        durability: Durability::OsBuffered,
        ..OutboxConfig::new(dir.path().join("outbox"))
    };
    let outbox = Arc::new(Outbox::open(outbox).unwrap().0);
    let kafka = nobody();
    let config = UplinkConfig { timeout: Duration::from_millis(300), ..config(dir.path()) };
    let uplink = start_with(config, &kafka, &outbox);
    append(&outbox, (0..500).map(|n| event(n, None)));
    let status = until(&uplink, |status| status.up == Some(false));
    assert!(status.lost > 300 && status.backlog < 200, "{status:?}");
    assert_eq!(status.lost + status.backlog, 500);
    assert!(status.bytes <= MIN_MAX_BYTES);
    let begun = Instant::now();
    assert!(uplink.stop(BOUND));
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // Nothing of it counts as sent.
    assert_eq!(outbox.committed(), 0);
}

#[test]
fn a_refused_password_is_seen_as_a_link_that_is_down_and_nothing_dies_of_it() {
    let dir = tempdir().unwrap();
    let right = config_of(test_services::shared());
    make_topic(&right, &right.results_topic, 1, &[]);
    let wrong = KafkaConfig { password: Secret::new("wrong-horse-battery"), ..right.clone() };
    let outbox = open(dir.path());
    let expected = append(&outbox, (0..10).map(|n| event(n, None)));
    let health = LinkHealth::new(Link::Kafka);
    let config = UplinkConfig { timeout: Duration::from_secs(3), ..config(dir.path()) };
    let uplink = Uplink::start(config, wrong.clone(), Arc::clone(&outbox), health.clone()).unwrap();
    // A slow handshake is a timeout first.
    let status =
        until(&uplink, |status| status.last_error.as_ref().is_some_and(|text| text.contains("password")));
    for text in [status.last_error.unwrap(), health.state().last_error.unwrap()] {
        assert!(text.contains(&right.user) && text.contains("password"), "{text}");
        assert!(!text.contains("wrong-horse-battery"), "{text}");
    }
    assert_eq!(health.state().up, Some(false));
    assert_eq!((status.backlog, status.dead_lettered), (10, 0));
    assert!(uplink.stop(BOUND));
    // After a correction and a restart everything is there.
    let uplink = start(dir.path(), &right, &outbox);
    drain(&uplink, &outbox);
    let mut expected = expected;
    expected.sort();
    assert_eq!(ids_when(&right, &right.results_topic, expected.len()), expected);
}

//! The transactional producer: all or nothing, which record is to blame, and the errors when nothing works.

use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::{Bookmark, KafkaConfig, PublishError, Record, TransactionalProducer};
use cloud_sync::secret::Secret;
use test_services::clock::Clock;

use super::support::{committed_when, config_of, ids, ids_when, make_topic, nobody, unique};

const CALL: Duration = Duration::from_secs(20);

fn shared() -> KafkaConfig {
    config_of(test_services::shared())
}

fn producer(config: &KafkaConfig, id: &str) -> TransactionalProducer {
    TransactionalProducer::open(config, id, CALL, LinkHealth::new(Link::Kafka))
}

fn record<'a>(key: &'a str, id: &'a str, payload: &'a [u8]) -> Record<'a> {
    Record { key: key.as_bytes(), id, payload }
}

#[test]
fn a_group_and_its_position_are_published_together_and_in_order() {
    let config = shared();
    let topic = &config.results_topic;
    make_topic(&config, topic, 3, &[]);
    let health = LinkHealth::new(Link::Kafka);
    let mut producer = TransactionalProducer::open(&config, &unique("id"), CALL, health.clone());
    let bookmark = Bookmark::new(&config, &unique("uplink"), topic, health.clone()).unwrap();
    producer.recover().unwrap();
    assert_eq!(bookmark.read(CALL).unwrap(), None);
    let names: Vec<_> = (0..5000).map(|i| (format!("camera-{}", i % 7), format!("id-{i:05}"))).collect();
    for (number, group) in names.chunks(2000).enumerate() {
        let records: Vec<_> = group.iter().map(|(key, id)| record(key, id, id.as_bytes())).collect();
        let upto = i64::try_from(number * 2000 + group.len()).unwrap();
        producer
            .publish(topic, &records, Some(&bookmark.at(upto, &format!("note {upto}")).unwrap()))
            .unwrap();
        let mark = bookmark.read(CALL).unwrap().unwrap();
        assert_eq!((mark.value, mark.note), (upto, format!("note {upto}")));
    }
    let seen = committed_when(&config, topic, 5000);
    assert_eq!(seen.len(), 5000);
    for camera in 0..7 {
        let key = format!("camera-{camera}");
        let of: Vec<_> = seen.iter().filter(|seen| seen.key == key).collect();
        assert!(of.is_sorted_by_key(|seen| &seen.id), "{key} is out of order");
        assert!(of.iter().all(|seen| seen.partition == of[0].partition), "{key} is on two partitions");
    }
    assert_eq!(health.state().up, Some(true));
    assert!(bookmark.at(-1, "").is_err());
}

#[test]
fn a_record_that_is_too_large_is_named_and_nothing_of_its_group_is_seen() {
    let mut config = shared();
    config.max_message_bytes = 1_000_000;
    let topic = &config.results_topic;
    make_topic(&config, topic, 1, &[("max.message.bytes", "100000"), ("compression.type", "uncompressed")]);
    let mut producer = producer(&config, &unique("id"));
    // Incompressible: the topic's limit applies to what arrives.
    let noise: Vec<u8> = (0..2_000_000).map(|_| fastrand::u8(..)).collect();
    let ids_: Vec<_> = (0..200).map(|i| format!("id-{i:03}")).collect();
    let mut records: Vec<_> = ids_.iter().map(|id| record("k", id, &noise[..3000])).collect();
    for (index, payload) in [(120, &noise[..]), (130, &noise[..200_000])] {
        // 2 MB are refused here, 200 KB by the topic.
        records[index].payload = payload;
    }
    for index in [120, 130] {
        match producer.publish(topic, &records, None) {
            Err(PublishError::Refused { index: at, error }) => {
                assert_eq!(at, index);
                let text = error.in_full();
                assert!(text.contains(&ids_[index]) && text.contains(topic.as_str()), "{text}");
                assert!(!error.is_transient());
            }
            other => panic!("{other:?}"),
        }
        records[index].payload = b"small";
    }
    assert_eq!(ids(&config, topic), Vec::<String>::new());
    // 200 records of 3 KB are more than the topic takes at once: they arrive in smaller batches.
    producer.publish(topic, &records, None).unwrap();
    assert_eq!(ids_when(&config, topic, ids_.len()), ids_);
}

/// The topic whose broker uses the producer's timestamps, for the process with another clock.
const MISTRUSTS: &str = "TRANSACTIONS_MISTRUSTS";
/// The topic whose broker uses its own.
const BELIEVES: &str = "TRANSACTIONS_BELIEVES";

#[test]
fn a_clock_that_the_broker_mistrusts_is_no_records_fault() {
    if let (Ok(mistrusts), Ok(believes)) = (env::var(MISTRUSTS), env::var(BELIEVES)) {
        publish_two_hours_ahead(&mistrusts, &believes);
        return;
    }
    let config = shared();
    let [mistrusts, believes] = [(); 2].map(|()| unique("results"));
    let an_hour = ("message.timestamp.after.max.ms", "3600000");
    make_topic(&config, &mistrusts, 1, &[("message.timestamp.type", "CreateTime"), an_hour]);
    make_topic(&config, &believes, 1, &[("message.timestamp.type", "LogAppendTime"), an_hour]);
    // The broker's own records, which end a transaction, have the right time: only the producer's clock is ahead.
    let clock = Clock::new();
    clock.ahead(Duration::from_secs(2 * 3600));
    let test = thread::current().name().unwrap().to_owned();
    let ahead = Command::new(env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture"])
        .envs(clock.env())
        .env("WEIR_SERVICES", test_services::shared().dir().join("services.json"))
        .envs([(MISTRUSTS, &mistrusts), (BELIEVES, &believes)])
        .output()
        .unwrap();
    let text = [ahead.stdout, ahead.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(ahead.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(ids(&config, &mistrusts), Vec::<String>::new());
    let expected: Vec<_> = (0..50).map(|i| format!("id-{i:03}")).collect();
    assert_eq!(ids_when(&config, &believes, 50), expected);
}

fn publish_two_hours_ahead(mistrusts: &str, believes: &str) {
    let health = LinkHealth::new(Link::Kafka);
    let mut producer = TransactionalProducer::open(&shared(), &unique("id"), CALL, health.clone());
    let ids_: Vec<_> = (0..50).map(|i| format!("id-{i:03}")).collect();
    let records: Vec<_> = ids_.iter().map(|id| record("k", id, id.as_bytes())).collect();
    // For a single record the broker names the reason, for a batch of several it does not.
    for group in [&records[..1], &records[..]] {
        match producer.publish(mistrusts, group, None) {
            Err(PublishError::Failed(error)) => {
                assert!(error.is_transient(), "{error:?}");
                let text = error.in_full();
                assert!(text.contains("set the time of this machine") && text.contains(mistrusts), "{text}");
            }
            other => panic!("{} records: {other:?}", group.len()),
        }
        assert_eq!(health.state().up, Some(false));
    }
    // The same producer works where its time does not matter.
    producer.publish(believes, &records, None).unwrap();
}

#[test]
fn a_newer_producer_of_the_same_id_shuts_the_older_out_and_ends_what_it_left_open() {
    let config = shared();
    let topic = &config.results_topic;
    make_topic(&config, topic, 1, &[]);
    let id = unique("id");
    let mut old = producer(&config, &id);
    old.publish(topic, &[record("k", "1", b"1")], None).unwrap();
    let mut new = producer(&config, &id);
    new.publish(topic, &[record("k", "2", b"2")], None).unwrap();
    let error = old.publish(topic, &[record("k", "3", b"3")], None).unwrap_err();
    assert!(matches!(error, PublishError::Fenced(_)), "{error:?}");
    assert_eq!(ids_when(&config, topic, 2), ["1", "2"]);
}

#[test]
fn a_producer_never_begins_anew_within_a_publication_that_follows_a_position() {
    let mut config = shared();
    config.max_message_bytes = 1_000_000;
    let topic = &config.results_topic;
    // Accepts no batch of the default size: the client must be recreated with a smaller one.
    make_topic(&config, topic, 1, &[("max.message.bytes", "100000"), ("compression.type", "uncompressed")]);
    let id = unique("id");
    let noise: Vec<u8> = (0..3000).map(|_| fastrand::u8(..)).collect();
    let ids_: Vec<_> = (0..200).map(|i| format!("id-{i:03}")).collect();
    let records: Vec<_> = ids_.iter().map(|id| record("k", id, &noise)).collect();
    let bookmark = Bookmark::new(&config, &unique("uplink"), topic, LinkHealth::new(Link::Kafka)).unwrap();
    let [mut one, mut twin] = [producer(&config, &id), producer(&config, &id)];

    let nothing = one.publish_next(topic, &records[..1], None).unwrap_err();
    assert!(matches!(nothing, PublishError::Anew), "it has not begun: {nothing:?}");
    one.recover().unwrap();
    let position = bookmark.at(200, "one").unwrap();
    let error = one.publish_next(topic, &records, Some(&position)).unwrap_err();
    assert!(matches!(error, PublishError::Anew), "{error:?}");
    // The twin publishes in between, and the first one must not continue as if nothing had happened.
    twin.recover().unwrap();
    twin.publish(topic, &records, Some(&bookmark.at(200, "twin").unwrap())).unwrap();
    for _ in 0..2 {
        let error = one.publish_next(topic, &records, Some(&position)).unwrap_err();
        assert!(matches!(error, PublishError::Anew), "{error:?}");
    }
    assert_eq!(bookmark.read(CALL).unwrap().unwrap().note, "twin");
    assert_eq!(ids_when(&config, topic, ids_.len()), ids_);
    // It learns the size of the topic's batches, with smaller ones at each attempt.
    let learned = (0..10).any(|_| {
        one.recover().unwrap();
        match one.publish_next(topic, &records[..100], None) {
            Ok(()) => true,
            Err(PublishError::Anew) => false,
            Err(error) => panic!("{error:?}"),
        }
    });
    assert!(learned, "no batch is small enough");
}

#[test]
fn a_broker_that_is_not_there_is_a_bounded_transient_error_and_a_link_that_is_down() {
    let config = nobody();
    let health = LinkHealth::new(Link::Kafka);
    let mut producer =
        TransactionalProducer::open(&config, "weir-test", Duration::from_secs(2), health.clone());
    let bookmark = Bookmark::new(&config, "weir-test", "results", health.clone()).unwrap();
    let begun = Instant::now();
    for _ in 0..2 {
        match producer.publish("results", &[record("k", "1", b"1")], None) {
            Err(PublishError::Failed(error)) => {
                assert!(error.is_transient(), "{}", error.in_full());
                assert!(error.in_full().contains(&config.bootstrap_servers), "{}", error.in_full());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(bookmark.read(Duration::from_secs(1)).unwrap_err().is_transient());
    assert_eq!(health.state().up, Some(false));
    drop(producer);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn a_refused_password_and_a_strange_certificate_say_what_to_do_and_never_the_password() {
    let right = shared();
    let wrong = KafkaConfig { password: Secret::new("wrong-horse-battery"), ..right.clone() };
    let other_ca = std::env::temp_dir().join(unique("no-ca.pem"));
    std::fs::write(&other_ca, "").unwrap();
    let missing = KafkaConfig { ca_file: Some(other_ca.clone()), ..right.clone() };
    let system = KafkaConfig { ca_file: None, ..right.clone() };
    for (config, word) in [(wrong, right.user.as_str()), (missing, "no-ca.pem"), (system, "CA file")] {
        let mut producer = TransactionalProducer::open(
            &config,
            "weir-test",
            Duration::from_secs(4),
            LinkHealth::new(Link::Kafka),
        );
        let start = Instant::now();
        // A slow handshake is a timeout first.
        let text = loop {
            match producer.publish("results", &[record("k", "1", b"1")], None) {
                Err(PublishError::Failed(error)) if error.is_transient() => {
                    assert!(start.elapsed() < Duration::from_secs(60), "{}", error.in_full());
                }
                Err(PublishError::Failed(error)) => break error.in_full(),
                other => panic!("{other:?}"),
            }
        };
        assert!(text.contains(word), "{text}");
        assert!(!text.contains(config.password.expose()), "{text}");
    }
    std::fs::remove_file(other_ca).unwrap();
}

#[test]
fn an_unknown_topic_is_a_permanent_error_that_names_it() {
    let config = shared();
    let topic = unique("nowhere");
    let mut producer = producer(&config, &unique("id"));
    match producer.publish(&topic, &[record("k", "1", b"1")], None) {
        Err(PublishError::Failed(error)) => {
            assert!(!error.is_transient() && error.in_full().contains(&topic), "{}", error.in_full());
        }
        other => panic!("{other:?}"),
    }
}

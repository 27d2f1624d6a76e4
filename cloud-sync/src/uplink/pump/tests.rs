//! A pump without a broker: what happens to poison while nothing can be sent.

use std::fs;
use std::time::Duration;

use super::*;
use crate::outbox::OutboxConfig;

#[test]
fn poison_is_buried_once_however_often_its_group_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap().0);
    outbox.append(b"not json".to_vec()).wait().unwrap();
    outbox.append(br#"{"v":1,"id":"01JD0000000000000000000000","kind":"test"}"#.to_vec()).wait().unwrap();
    outbox.append(b"[]".to_vec()).wait().unwrap();
    let config = UplinkConfig {
        timeout: Duration::from_millis(200),
        ..UplinkConfig::new("box-1", outbox.dir(), dir.path().join("dead"))
    };
    let health = LinkHealth::new(Link::Kafka);
    let kafka = KafkaConfig::of_nobody(Duration::from_secs(6));
    let mut pump = Pump {
        producer: TransactionalProducer::open(&kafka, "weir-uplink-test", config.timeout, health.clone()),
        bookmark: None,
        name: "weir-uplink-test".into(),
        source: Source::open(&config.outbox_dir, Arc::clone(&outbox)).unwrap(),
        dead: DeadLetters::new(config.dead_letter_dir.clone(), 1 << 20),
        backoff: Backoff::new(config.first_wait, config.longest_wait),
        kafka,
        config,
        outbox,
        health,
        numbers: Arc::default(),
        // The broker has been asked already, and went away then.
        at: Some(0),
        uncommitted_since: None,
        buried: BTreeSet::new(),
        losses: Losses::default(),
        stop: crossbeam_channel::never(),
    };
    for _ in 0..3 {
        pump.step().unwrap_err();
    }
    let letters: Vec<String> = fs::read_dir(dir.path().join("dead"))
        .unwrap()
        .flat_map(|file| {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert_eq!(pump.numbers.dead_lettered.load(Ordering::Relaxed), 2);
    pump.moved(3);
    assert!(pump.buried.is_empty(), "what is behind is not remembered");
}

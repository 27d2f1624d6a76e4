//! A pump without a broker: handling of unpublishable events while nothing can be sent.

use std::fs;
use std::time::Duration;

use super::*;
use crate::outbox::OutboxConfig;
use crate::uplink::identity::Identity;

/// A pump whose broker does not exist.
fn pump(config: UplinkConfig, outbox: Arc<Outbox>) -> Pump {
    let health = LinkHealth::new(Link::Kafka);
    let kafka = KafkaConfig::of_nobody(Duration::from_secs(6));
    let identity = Identity::load_or_create(&config.outbox_dir).unwrap();
    let account = Account::open(&kafka, &config, identity, health.clone());
    let source = Source::open(&config.outbox_dir, Arc::clone(&outbox)).unwrap();
    let stop = crossbeam_channel::never();
    Pump::new(config, kafka, account, outbox, source, health, Arc::default(), stop)
}

#[test]
fn poison_is_dead_lettered_once_however_often_its_group_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap().0);
    outbox.append(b"not json".to_vec()).wait().unwrap();
    outbox.append(br#"{"v":1,"id":"01JD0000000000000000000000","kind":"test"}"#.to_vec()).wait().unwrap();
    outbox.append(b"[]".to_vec()).wait().unwrap();
    let config = UplinkConfig {
        timeout: Duration::from_millis(200),
        ..UplinkConfig::new("box-1", outbox.dir(), dir.path().join("dead"))
    };
    let mut pump = pump(config, outbox);
    for _ in 0..3 {
        // As if the broker had been queried already, and became unavailable then.
        pump.at = Some(0);
        assert!(!pump.step().unwrap(), "nothing can be sent");
        assert_eq!(pump.at, None, "the broker is asked anew first");
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
    assert!(pump.in_dead_letters.is_empty(), "what is behind is not remembered");
}

#[test]
fn an_event_whose_dead_letter_cannot_be_written_waits_and_so_does_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(OutboxConfig::new(dir.path().join("outbox"))).unwrap().0);
    outbox.append(b"not json".to_vec()).wait().unwrap();
    // A file in place of the directory: no letter can be written, not even by root.
    fs::write(dir.path().join("dead"), "").unwrap();
    let config = UplinkConfig::new("box-1", outbox.dir(), dir.path().join("dead"));
    let mut pump = pump(config, Arc::clone(&outbox));
    pump.at = Some(0);
    for _ in 0..3 {
        let error = pump.step().unwrap_err();
        assert!(error.is_transient() && error.link() == Link::Disk, "{error:?}");
        pump.failed(&error);
    }
    assert_eq!((pump.at, outbox.committed()), (Some(0), 0));
    assert_eq!(pump.numbers.dead_lettered.load(Ordering::Relaxed), 0);
    assert_eq!(pump.numbers.dead_letter_failures.load(Ordering::Relaxed), 3);
    assert_eq!(pump.health.state().up, Some(false));
    fs::remove_file(dir.path().join("dead")).unwrap();
    assert!(pump.step().unwrap());
    assert_eq!((pump.at, pump.numbers.dead_lettered.load(Ordering::Relaxed)), (Some(1), 1));
}

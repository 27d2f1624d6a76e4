//! A process that drains an outbox is killed repeatedly: a reader of committed records sees every event once.
//!
//! The test starts itself as the child: with the directory in the environment it drains until it is killed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::env;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cloud_sync::kafka::KafkaConfig;
use cloud_sync::outbox::Reader;
use cloud_sync::uplink::UplinkConfig;

#[allow(dead_code, reason = "shared with the tests of the other Kafka parts")]
#[path = "kafka/support.rs"]
mod broker;
#[allow(dead_code, reason = "shared with the other tests of the uplink")]
#[path = "uplink/support.rs"]
mod support;

const DIR: &str = "UPLINK_CRASH_DIR";
const TOPIC: &str = "UPLINK_CRASH_TOPIC";
/// Each outbox is drained by this many killed processes, and by a last one that is not killed.
const KILLS: u64 = 10;
/// Number of outboxes: one per two rounds of `WEIR_FAULT_ROUNDS`, which is 2 by default. So 20 are 100 kills.
const ROUNDS_AN_OUTBOX: u64 = 2;
const EVENTS: usize = 20_000;

fn main() {
    match env::var_os(DIR) {
        Some(dir) => drain_until_killed(&PathBuf::from(dir)),
        None => {
            let rounds: u64 = env::var("WEIR_FAULT_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
            let outboxes = (rounds / ROUNDS_AN_OUTBOX).max(1);
            (0..outboxes).for_each(|_| kill_again_and_again());
            let (kills, events) = (outboxes * KILLS, outboxes * EVENTS as u64);
            println!("summary: {kills} kills while sending: {events} events, 0 missing, 0 twice");
        }
    }
}

fn kafka() -> KafkaConfig {
    let mut kafka = broker::config_of(test_services::shared());
    if let Ok(topic) = env::var(TOPIC) {
        kafka.results_topic = topic;
    }
    kafka
}

fn drain_until_killed(dir: &Path) {
    let outbox = support::open(dir);
    let config = UplinkConfig { group_events: 20, ..support::config(dir) };
    let uplink = support::start_with(config, &kafka(), &outbox);
    loop {
        println!("{}", uplink.status().sent);
        thread::sleep(Duration::from_millis(10));
    }
}

fn kill_again_and_again() {
    let kafka = kafka();
    broker::make_topic(&kafka, &kafka.results_topic, 3, &[]);
    let dir = tempfile::tempdir().unwrap();
    let cameras = |n: usize| format!("dock-{}", n % 7);
    let outbox = support::open(dir.path());
    let mut expected = support::append(&outbox, (0..EVENTS).map(|n| support::event(n, Some(&cameras(n)))));
    outbox.close().unwrap();
    let mut in_the_middle = 0;
    for round in 0..KILLS {
        let mut child = Command::new(env::current_exe().unwrap())
            .env(DIR, dir.path())
            .env(TOPIC, &kafka.results_topic)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed this long after it has started to send, at a different point of a group each time.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let sending = lines.by_ref().any(|line| line.unwrap().parse::<u64>().unwrap() > 0);
        assert!(sending, "the child of round {round} ended by itself");
        thread::sleep(Duration::from_millis(23 * round));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "the child of round {round} was not killed");
        // Until here: a child without a reader would end by itself.
        drop(lines);
        let sent = broker::ids(&kafka, &kafka.results_topic).len();
        in_the_middle += u64::from(sent < EVENTS);
    }
    assert_eq!(in_the_middle, KILLS, "more events are needed: everything was sent before the last kill");
    let outbox = support::open(dir.path());
    let uplink = support::start(dir.path(), &kafka, &outbox);
    let status = support::drain(&uplink, &outbox);
    assert!(uplink.stop(support::BOUND));
    assert_eq!((status.lost, status.dead_lettered), (0, 0));
    let seen = broker::committed_when(&kafka, &kafka.results_topic, EVENTS);
    let mut found: Vec<_> = seen.iter().map(|seen| seen.id.clone()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found.len(), EVENTS);
    assert_eq!(found, expected);
    // In the order of the outbox, for each camera.
    let order: Vec<_> =
        Reader::open(dir.path().join("outbox")).unwrap().map(|event| event.unwrap().payload).collect();
    for camera in (0..7).map(cameras) {
        let sent: Vec<_> = seen.iter().filter(|seen| seen.key == camera).map(|seen| &seen.payload).collect();
        let needle = format!("\"camera\":\"{camera}\"");
        let written = order.iter().filter(|payload| String::from_utf8_lossy(payload).contains(&needle));
        assert!(written.eq(sent.iter().copied()), "{camera} is out of order");
    }
}

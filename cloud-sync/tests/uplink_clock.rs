//! The wall clock of a process that appends and sends is stepped, beyond every limit on age, while Kafka is
//! unavailable and while it is available, and the process is killed meanwhile: every acknowledged event reaches the
//! topic once.
//!
//! The test starts itself as the child, with a separate clock: it appends until it is killed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cloud_sync::kafka::KafkaConfig;
use cloud_sync::outbox::{Outbox, OutboxConfig};
use test_services::clock::Clock;

#[allow(dead_code, reason = "shared with the tests of the other Kafka parts")]
#[path = "kafka/support.rs"]
mod broker;
#[allow(dead_code, reason = "shared with the other tests of the uplink")]
#[path = "uplink/support.rs"]
mod support;

const DIR: &str = "UPLINK_CLOCK_DIR";
/// None while Kafka is unavailable.
const TOPIC: &str = "UPLINK_CLOCK_TOPIC";
const HOUR: i64 = 3600;
/// Offsets from the correct time, in turn: both directions, small and large, and back between them.
const STEPS: [i64; 10] = [
    -60 * 24 * HOUR,
    0,
    400 * 24 * HOUR,
    -400 * 24 * HOUR,
    2 * HOUR,
    -2 * HOUR,
    30 * 365 * 24 * HOUR,
    -40 * 365 * 24 * HOUR,
    60,
    -60,
];
/// The child is killed and started again at each step of this kind.
const RESTART_EVERY: usize = 3;

fn main() {
    match env::var_os(DIR) {
        Some(dir) => append_until_killed(&PathBuf::from(dir)),
        None => step_again_and_again(),
    }
}

/// Events would be deleted after an hour if their age were that of the wall clock.
fn open(dir: &Path) -> Arc<Outbox> {
    let hour = Duration::from_secs(3600);
    let config = OutboxConfig {
        segment_bytes: 64 << 10,
        max_age: hour,
        keep_committed: hour,
        has_consumer: true,
        ..OutboxConfig::new(dir.join("outbox"))
    };
    Arc::new(Outbox::open(config).unwrap().0)
}

fn kafka(topic: &str) -> KafkaConfig {
    KafkaConfig { results_topic: topic.to_owned(), ..broker::config_of(test_services::shared()) }
}

fn append_until_killed(dir: &Path) {
    let kafka = env::var(TOPIC).map_or_else(|_| broker::nobody(), |topic| kafka(&topic));
    let outbox = open(dir);
    let _uplink = support::start(dir, &kafka, &outbox);
    for n in 0.. {
        for id in support::append(&outbox, (0..2).map(|i| support::event(2 * n + i, Some("dock")))) {
            println!("{id}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A child and the ids that it has acknowledged.
struct Appender {
    child: Child,
    ids: JoinHandle<Vec<String>>,
}

impl Appender {
    fn start(dir: &Path, clock: &Clock, topic: Option<&str>) -> Self {
        let mut child = Command::new(env::current_exe().unwrap());
        child.env(DIR, dir).envs(clock.env()).stdout(Stdio::piped());
        if let Some(topic) = topic {
            child.env(TOPIC, topic);
        }
        let mut child = child.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It runs, whatever its time.
        let first = lines.next().unwrap_or_else(|| panic!("the child ended by itself")).unwrap();
        // A line that the kill has cut is shorter than an id.
        let whole = |line: std::io::Result<String>| line.ok().filter(|id| id.len() == 26);
        let ids = thread::spawn(move || [first].into_iter().chain(lines.map_while(whole)).collect());
        Self { child, ids }
    }

    fn kill(mut self) -> Vec<String> {
        assert_eq!(self.child.try_wait().unwrap(), None, "the child ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.ids.join().unwrap()
    }
}

fn step_again_and_again() {
    let rounds: usize = env::var("WEIR_FAULT_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let steps = (rounds * 5 / 2).max(2);
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::new());
    let topic = broker::unique("results");
    let kafka = kafka(&topic);
    // By the broker's time: by that of the events it may delete or refuse those with a wrong clock.
    broker::make_topic(&kafka, &topic, 3, &[("message.timestamp.type", "LogAppendTime")]);
    let (mut acknowledged, mut restarts) = (Vec::new(), 0);
    let mut appender = Appender::start(dir.path(), &clock, None);
    for step in 0..steps {
        clock.shift(STEPS[step % STEPS.len()]);
        // Unavailable for the first half of the steps.
        if step % RESTART_EVERY == RESTART_EVERY - 1 || step == steps / 2 {
            acknowledged.extend(appender.kill());
            restarts += 1;
            let topic = (step >= steps / 2).then_some(topic.as_str());
            appender = Appender::start(dir.path(), &clock, topic);
        }
    }
    acknowledged.extend(appender.kill());

    let outbox = open(dir.path());
    let stats = outbox.stats();
    assert_eq!((stats.dropped_by_age, stats.dropped_by_size), (0, 0));
    let uplink = support::start(dir.path(), &kafka, &outbox);
    let status = support::drain(&uplink, &outbox);
    assert!(uplink.stop(support::BOUND));
    assert_eq!((status.lost, status.dead_lettered, status.renewed), (0, 0, 0));
    let mut times: BTreeMap<String, usize> = acknowledged.iter().map(|id| (id.clone(), 0)).collect();
    for seen in broker::committed_when(&kafka, &topic, acknowledged.len()) {
        // There may be one more than was acknowledged: a kill comes between the event and its line.
        *times.entry(seen.id).or_default() += 1;
    }
    let missing = times.values().filter(|times| **times == 0).count();
    let doubled = times.values().filter(|times| **times > 1).count();
    let events = acknowledged.len();
    assert_eq!((missing, doubled), (0, 0), "of {events} events missing, doubled");
    println!("summary: {steps} clock steps, {restarts} restarts: {events} events, 0 missing, 0 twice");
}

//! Recovery after a long time without a network: how fast the backlog is sent, and how much memory that takes.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Servers;
use super::api::Metrics;
use super::outbox;
use crate::bench::result::{Section, Target};
use crate::bench::setup::{Setup, progress};
use crate::process::{cpu_time, memory};

const EVENTS: u64 = 1_000_000;
/// Room for all of them in the outbox, in bytes.
const ROOM: u64 = 4 << 30;
/// Longest time for sending the backlog.
const TIMEOUT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(in crate::bench) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let servers = Servers::start(&["kafka"]);
    let dir = tempfile::tempdir()?;
    progress(&format!("writing {EVENTS} events"));
    let length = outbox::fill(&dir.path().join("outbox"), ROOM, EVENTS)?;
    let mut section = Section::new(
        "uplink",
        format!(
            "{EVENTS} prediction events of {length:.0} bytes wait in the outbox when `weir serve` is started on it; Kafka \
             (SASL_SSL, gzip) on the same cores. From the start of the process until none waits."
        ),
    );
    let mut variables = servers.kafka();
    variables.push(("WEIR__OUTBOX__MAX_BYTES", ROOM.to_string()));
    let start = Instant::now();
    let daemon = setup.start_in("serve", &setup.bundle, &variables, dir.path())?;
    let mut client = crate::load::Client::new(daemon.target("/"), Duration::from_secs(30))?;
    let sent = loop {
        let metrics = Metrics::of(&mut client)?;
        let (waiting, sent) =
            (metrics.value("weir_uplink_backlog")?, metrics.value("weir_uplink_sent_total")?);
        if waiting == 0.0 && sent > 0.0 {
            break sent;
        }
        ensure!(start.elapsed() < TIMEOUT, "{waiting} events still wait after {TIMEOUT:?}, {sent} are sent");
        std::thread::sleep(POLL_INTERVAL);
    };
    let took = start.elapsed().as_secs_f64();
    let (cpu, peak) = (cpu_time(daemon.pid())?, memory(daemon.pid())?.peak);
    let missing = EVENTS as f64 - records(&servers)? as f64;
    section.hold("until none waits", took, "s", Target::Below(120.0));
    section.hold("peak resident memory", peak as f64 / 1e6, "MB", Target::Below(250.0));
    // Either sign: a duplicate is as wrong as a missing event.
    section.hold("events less records in the topic", missing.abs(), "", Target::AtMost(0.0));
    section.hold("events less those counted as sent", (EVENTS as f64 - sent).abs(), "", Target::AtMost(0.0));
    section.note("events per second", EVENTS as f64 / took, "");
    section.note("CPU time of weir", cpu.as_secs_f64(), "s");
    Ok(section)
}

/// Number of committed records in the results topic. Offsets cannot be used, since transaction markers have offsets too.
fn records(servers: &Servers) -> anyhow::Result<u64> {
    let kafka = servers.services.kafka();
    let mut config = ClientConfig::new();
    for (name, value) in kafka.client_settings() {
        config.set(name, value);
    }
    config
        .set("group.id", "bench-uplink-count")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create()?;
    let wait = Duration::from_secs(30);
    let metadata = consumer.fetch_metadata(Some(&kafka.results_topic), wait)?;
    let topic = metadata.topics().first().context("the broker does not have the results topic")?;
    ensure!(!topic.partitions().is_empty(), "the topic {} has no partitions", topic.name());
    let mut all = TopicPartitionList::new();
    for partition in topic.partitions() {
        all.add_partition_offset(topic.name(), partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let (mut records, mut ended) = (0, HashSet::new());
    while ended.len() < all.count() {
        match consumer.poll(wait).context("reading the results topic to its end")? {
            Ok(_) => records += 1,
            Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(records)
}

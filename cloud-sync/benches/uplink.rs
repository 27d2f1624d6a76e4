//! How fast a backlog drains to a real broker, and how much memory that takes: `WEIR_SERVICES=... cargo bench -p
//! cloud-sync --bench uplink [EVENTS]`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::fs;
use std::time::{Duration, Instant};

use cloud_sync::event::Event;

#[allow(dead_code, reason = "shared with the tests of the Kafka parts")]
#[path = "../tests/kafka/support.rs"]
mod broker;
#[allow(dead_code, reason = "shared with the tests of the uplink")]
#[path = "../tests/uplink/support.rs"]
mod support;

const CAMERAS: usize = 16;

fn main() {
    let named = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let count: usize = named.unwrap_or(1_000_000);
    let mut kafka = broker::config_of(test_services::shared());
    // The broker's own limit, as in our deployments.
    kafka.max_message_bytes = 1_000_000;
    let topic = [("compression.type", "gzip"), ("retention.bytes", "357913941")];
    broker::make_topic(&kafka, &kafka.results_topic, 3, &topic);
    let dir = tempfile::tempdir().unwrap();
    let outbox = cloud_sync::outbox::OutboxConfig {
        durability: cloud_sync::outbox::Durability::OsBuffered,
        max_bytes: 4 << 30,
        max_pending: 20_000,
        ..cloud_sync::outbox::OutboxConfig::new(dir.path().join("outbox"))
    };
    let outbox = std::sync::Arc::new(cloud_sync::outbox::Outbox::open(outbox).unwrap().0);
    let names: Vec<_> = (0..CAMERAS).map(|camera| format!("dock-{camera}")).collect();
    let made = |n: usize| -> Event { support::event(n, Some(&names[n % CAMERAS])) };
    let mut bytes = 0;
    for from in (0..count).step_by(10_000) {
        let events: Vec<Event> = (from..count.min(from + 10_000)).map(made).collect();
        bytes += events.iter().map(|event| event.to_json().unwrap().len()).sum::<usize>();
        support::append(&outbox, events);
    }
    println!("{count} events, {} bytes each, on disk", bytes / count);
    let (begun, cpu) = (Instant::now(), cpu_time());
    let config = cloud_sync::uplink::UplinkConfig {
        timeout: Duration::from_secs(45),
        ..cloud_sync::uplink::UplinkConfig::new("box-1", dir.path().join("outbox"), dir.path().join("dead"))
    };
    let uplink = support::start_with(config, &kafka, &outbox);
    let mut resident = 0;
    while uplink.status().sent < count as u64 {
        resident = resident.max(resident_kib());
        std::thread::sleep(Duration::from_millis(50));
        assert!(begun.elapsed() < Duration::from_secs(600), "{:?}", uplink.status());
    }
    let took = begun.elapsed();
    println!(
        "drained in {took:.1?}: {:.0} events/s, {:.1} s of processor time here, resident at most {} MiB",
        count as f64 / took.as_secs_f64(),
        (cpu_time() - cpu).as_secs_f64(),
        resident >> 10
    );
}

/// User and system time of this process; from Linux's `/proc`, in hundredths of a second.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let behind_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 = behind_name.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

//! The exposition, as a scraper reads it.

use std::collections::BTreeMap;
use std::time::Duration;

use cloud_sync::capture::CaptureStats;
use cloud_sync::health::LinkState;
use gpu_kernels::cuda::GpuReading;
use inference::lanes::{LaneObserver, SkipReason};

use super::*;
use crate::batch::worker::WorkerCounts;
use crate::batch::{BatchMetrics, BatchReading};

/// Every metric with a sample, all that can be counted at 3.
fn everything(waiting: Option<u64>) -> String {
    let metrics = Metrics::new();
    metrics.request("predict", 200);
    for stage in Stage::ALL {
        metrics.stage(stage, Duration::from_millis(1));
    }
    for outcome in [CacheOutcome::Hit, CacheOutcome::Miss, CacheOutcome::Shared] {
        metrics.cache(outcome);
    }
    for outcome in
        [BatchOutcome::Accepted, BatchOutcome::Repeated, BatchOutcome::Refused, BatchOutcome::Unavailable]
    {
        metrics.batch(outcome, 1);
    }
    metrics.prediction("tench");
    metrics.skipped(0, SkipReason::Cancelled);
    metrics.restarted(0);
    let counts = WorkerCounts {
        classified: 3,
        failed: 3,
        batches: 3,
        cancelled: 3,
        dead_letters: 3,
        duplicates: 3,
        lost: 3,
        refused_results: 3,
        retried_images: 3,
        crashing_images: 3,
        damaged_results: 3,
        quarantined: 3,
        ..WorkerCounts::default()
    };
    let mut capture = CaptureStats::default();
    (capture.sent, capture.skipped, capture.deduplicated, capture.dead) = (3, 3, 3, 3);
    let mut link = LinkState::default();
    (link.up, link.failures) = (Some(false), 3);
    let uplink = UplinkReading {
        sent: 3,
        dead_lettered: 3,
        lost: 3,
        dead_letter_failures: 3,
        fenced: 3,
        renewed: 3,
        ..UplinkReading::default()
    };
    let mut outbox = cloud_sync::outbox::Stats::default();
    (outbox.dropped_by_size, outbox.dropped_by_age, outbox.failed, outbox.syncs) = (1, 2, 3, 3);
    outbox.total_sync = Duration::from_secs(3);
    let gauges = Gauges {
        queue_depth: 0,
        queue_capacity: 8,
        lanes_alive: 1,
        memory: crate::telemetry::MemoryReadings { bodies: (7, 64), decode: (5, 512), waiting: 2, stuck: 1 },
        cache: None,
        outbox: Some(outbox),
        cloud: CloudReadings {
            links: vec![("kafka", link)],
            uplink: Some(uplink),
            capture: Some(capture),
            blobs: None,
        },
        gpus: vec![Some(GpuReading { ecc_errors: Some(3), ..GpuReading::default() })],
    };
    let batches = BatchMetrics::default();
    metrics.add(|registry| batches.register(registry));
    for _ in 0..2 {
        batches.set(&BatchReading { waiting, counts, retries: 3, ..BatchReading::default() });
    }
    metrics.render(Some(&gauges)).unwrap();
    // A second scrape of the same totals adds nothing.
    metrics.render(Some(&gauges)).unwrap()
}

/// The type of each metric by its name.
fn types(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

fn samples(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

#[test]
fn what_is_counted_is_a_counter_and_ends_in_total() {
    let text = everything(None);
    let types = types(&text);
    for (name, kind) in &types {
        assert!(!name.ends_with("_total"), "{name}: the ending belongs to its sample");
        let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with("_total"));
        assert_eq!(*kind == "counter", samples(&text).any(|line| of_it(&line)), "{name} is a {kind}");
    }
    for name in [
        "link_failures_total{link=\"kafka\"}",
        "uplink_sent_total",
        "uplink_dead_lettered_total",
        "uplink_lost_total",
        "uplink_dead_letter_failures_total",
        "uplink_fenced_total",
        "uplink_identities_renewed_total",
        "capture_sent_total",
        "capture_skipped_total",
        "capture_deduplicated_total",
        "capture_dead_total",
        "batch_images_completed_total",
        "batch_images_failed_total",
        "batch_finished_total",
        "batch_cancelled_total",
        "batch_bad_messages_total",
        "batch_duplicate_messages_total",
        "batch_moved_messages_total",
        "batch_refused_results_total",
        "batch_store_retries_total",
        "batch_image_retries_total",
        "batch_crashing_images_total",
        "batch_damaged_results_total",
        "batch_quarantined_files_total",
        "outbox_dropped_total",
        "outbox_append_failures_total",
        "outbox_syncs_total",
        "outbox_sync_time_seconds_total",
        "gpu_ecc_errors_total{gpu=\"0\"}",
    ] {
        let value = samples(&text).find_map(|line| line.strip_prefix("weir_")?.strip_prefix(name));
        assert!(matches!(value, Some(" 3" | " 3.0")), "{name}: {value:?}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_lag_that_is_not_known_has_no_sample() {
    let waiting = |text: &str| samples(text).find(|l| l.starts_with("weir_batch_waiting")).map(str::to_owned);
    assert_eq!(waiting(&everything(None)), None);
    assert_eq!(waiting(&everything(Some(0))).as_deref(), Some("weir_batch_waiting 0"));
}

#[test]
fn names_and_label_values_are_in_lower_case() {
    let text = everything(Some(1));
    for line in samples(&text) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        assert!(!series.replace("+Inf", "").contains(char::is_uppercase), "{series}");
    }
    for label in ["stage=\"preprocess\"", "outcome=\"hit\"", "outcome=\"unavailable\""] {
        assert!(text.contains(label), "{label}\n{text}");
    }
}

//! The daemon's HTTP API as a client uses it: batches and their status, and metrics.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::bench::setup::Server;
use crate::load::{Client, Request};

/// Interval between status queries.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The answer to `GET /batch/status/:id`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) status: String,
    pub(super) total: u64,
    pub(super) completed: u64,
    pub(super) failed: u64,
}

/// Posts a batch of `count` images, the URLs in turn.
pub(super) fn post_batch(api: &Server, id: &str, urls: &[String], count: usize) -> anyhow::Result<()> {
    let images: Vec<&String> = urls.iter().cycle().take(count).collect();
    let body = serde_json::to_vec(&json!({ "request_id": id, "image_urls": images }))?;
    let reply = api.client()?.send(&Request::json(&api.daemon.target("/batch/predict"), body))?;
    let text = String::from_utf8_lossy(&reply.body);
    ensure!(reply.status == 202, "POST /batch/predict answered {}: {text}", reply.status);
    Ok(())
}

/// The path of a batch's status.
pub(super) fn status_path(id: &str) -> String {
    format!("/batch/status/{id}")
}

/// The status of a batch.
pub(super) fn batch_status(client: &mut Client, id: &str) -> anyhow::Result<Status> {
    let reply = client.get(&status_path(id))?;
    let text = String::from_utf8_lossy(&reply.body);
    ensure!(reply.status == 200, "GET {} answered {}: {text}", status_path(id), reply.status);
    serde_json::from_slice(&reply.body).with_context(|| format!("no status of a batch: {text}"))
}

/// Waits until a batch is finished with every image classified.
pub(super) fn wait_finished(api: &Server, id: &str, timeout: Duration) -> anyhow::Result<()> {
    let (mut client, start) = (api.client()?, Instant::now());
    loop {
        let now = batch_status(&mut client, id)?;
        if now.status == "completed" || now.status == "failed" {
            let whole = now.completed == now.total && now.failed == 0;
            ensure!(whole, "batch {id} ended with failed images: {now:?}");
            return Ok(());
        }
        ensure!(start.elapsed() < timeout, "batch {id} is not finished after {timeout:?}: {now:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// One scrape.
pub(super) struct Metrics(String);

impl Metrics {
    pub(super) fn of(client: &mut Client) -> anyhow::Result<Self> {
        let reply = client.get("/metrics")?;
        ensure!(reply.status == 200, "GET /metrics answered {}", reply.status);
        Ok(Self(String::from_utf8(reply.body).context("GET /metrics is no text")?))
    }

    /// The value of a metric without labels.
    pub(super) fn value(&self, name: &str) -> anyhow::Result<f64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("GET /metrics has no {name}"))?;
        value.parse().with_context(|| format!("{name} {value}"))
    }

    /// Upper end of the bucket that holds the median of a histogram, of the series that has `label`.
    pub(super) fn median_bucket(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let buckets = self.buckets(name, label);
        let (_, count) =
            buckets.last().copied().with_context(|| format!("GET /metrics has no {name}{{{label}}}"))?;
        ensure!(count > 0.0, "{name}{{{label}}} has counted nothing");
        let half = buckets.iter().find(|(_, below)| *below * 2.0 >= count);
        Ok(half.map_or(f64::INFINITY, |(end, _)| *end))
    }

    /// Upper end and count up to there, in rising order.
    fn buckets(&self, name: &str, label: &str) -> Vec<(f64, f64)> {
        let bucket = |line: &str| {
            let (labels, count) = line.strip_prefix(name)?.strip_prefix("_bucket{")?.split_once("} ")?;
            let mut labels = labels.split(',');
            let end = labels.clone().find_map(|one| one.strip_prefix("le=\"")?.strip_suffix('"'))?;
            let end = if end == "+Inf" { f64::INFINITY } else { end.parse().ok()? };
            // An exemplar may follow the count.
            let count = count.split(' ').next()?.parse().ok()?;
            labels.any(|one| one == label).then_some((end, count))
        };
        let mut buckets: Vec<(f64, f64)> = self.0.lines().filter_map(bucket).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE weir_uplink_backlog gauge\nweir_uplink_backlog 12\nweir_uplink_backlog_age 3.5\n\
                        weir_stage_bucket{le=\"0.001\",stage=\"outbox\"} 2\n\
                        weir_stage_bucket{le=\"0.002\",stage=\"outbox\"} 5\n\
                        weir_stage_bucket{le=\"+Inf\",stage=\"outbox\"} 9\n\
                        weir_stage_bucket{le=\"0.001\",stage=\"infer\"} 9\n";

    #[test]
    fn values_are_found_by_their_whole_name() {
        let metrics = Metrics(TEXT.to_owned());
        assert_eq!(metrics.value("weir_uplink_backlog").unwrap(), 12.0);
        assert_eq!(metrics.value("weir_uplink_backlog_age").unwrap(), 3.5);
        assert!(metrics.value("weir_uplink").unwrap_err().to_string().contains("weir_uplink"));
    }

    #[test]
    fn the_median_is_in_the_first_bucket_that_holds_half() {
        let metrics = Metrics(TEXT.to_owned());
        assert_eq!(metrics.median_bucket("weir_stage", "stage=\"outbox\"").unwrap(), 0.002);
        assert_eq!(metrics.median_bucket("weir_stage", "stage=\"infer\"").unwrap(), 0.001);
        assert!(metrics.median_bucket("weir_stage", "stage=\"decode\"").is_err());
    }
}

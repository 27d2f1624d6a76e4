//! A batch as its client sees it: posted, and asked for until it is finished.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::bench::setup::Server;
use crate::load::{Client, Request};

/// How often a batch is asked for.
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
pub(super) fn post(api: &Server, id: &str, urls: &[String], count: usize) -> anyhow::Result<()> {
    let images: Vec<&String> = urls.iter().cycle().take(count).collect();
    let body = serde_json::to_vec(&json!({ "request_id": id, "image_urls": images }))?;
    let reply = api.client()?.ask(&Request::json(&api.daemon.target("/batch/predict"), body))?;
    let text = String::from_utf8_lossy(&reply.body);
    ensure!(reply.status == 202, "POST /batch/predict answered {}: {text}", reply.status);
    Ok(())
}

/// The path of a batch's status.
pub(super) fn path(id: &str) -> String {
    format!("/batch/status/{id}")
}

/// How far a batch is.
pub(super) fn status(client: &mut Client, id: &str) -> anyhow::Result<Status> {
    let reply = client.get(&path(id))?;
    let text = String::from_utf8_lossy(&reply.body);
    ensure!(reply.status == 200, "GET {} answered {}: {text}", path(id), reply.status);
    serde_json::from_slice(&reply.body).with_context(|| format!("no status of a batch: {text}"))
}

/// Waits until a batch is finished with every image classified.
pub(super) fn finished(api: &Server, id: &str, timeout: Duration) -> anyhow::Result<()> {
    let (mut client, start) = (api.client()?, Instant::now());
    loop {
        let now = status(&mut client, id)?;
        if now.status == "completed" || now.status == "failed" {
            let whole = now.completed == now.total && now.failed == 0;
            ensure!(whole, "batch {id} ended with failed images: {now:?}");
            return Ok(());
        }
        ensure!(start.elapsed() < timeout, "batch {id} is not finished after {timeout:?}: {now:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

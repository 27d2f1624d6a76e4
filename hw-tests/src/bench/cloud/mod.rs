//! Benches of batches and links, against their own instances of the real servers: Kafka, Redis and S3.

mod api;
pub(super) mod outbox;
pub(super) mod status;
pub(super) mod uplink;
pub(super) mod worker;

use std::collections::BTreeMap;

use anyhow::Context;
use cloud_sync::blob::{BlobKey, BlobStore, S3Config, S3Store};
use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use test_services::Services;

use super::setup::{Server, Setup, bench_frames, progress};
use crate::frames::{Frame, Size, with_tag};

/// Concurrent uploads.
const AT_ONCE: usize = 4;

/// Those of Kafka, Redis and S3 that a bench needs.
pub(super) struct Servers {
    pub(super) services: Services,
}

/// The state file of `scripts/services`.
#[derive(Deserialize)]
struct State {
    processes: BTreeMap<String, Process>,
}

#[derive(Deserialize)]
struct Process {
    pid: u32,
}

impl Servers {
    /// Starts them without data. If a server does not start, the bench ends with its log.
    pub(super) fn start(names: &[&str]) -> Self {
        progress(&format!("starting {}", names.join(", ")));
        Self { services: Services::own(names) }
    }

    /// The deployment's variables for the broker.
    pub(super) fn kafka(&self) -> Vec<(&'static str, String)> {
        let kafka = self.services.kafka();
        kafka.env(&kafka.requests_topic, &kafka.results_topic)
    }

    /// The deployment's variables for all three.
    fn all(&self) -> Vec<(&'static str, String)> {
        [self.kafka(), self.services.redis().env(), self.services.s3().env()].concat()
    }

    /// `weir serve` or `weir worker` with all three links, ready.
    pub(super) fn weir(&self, setup: &Setup, command: &str) -> anyhow::Result<Server> {
        setup.start_with(command, &self.all())
    }

    /// The servers' names and process ids.
    pub(super) fn processes(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let path = self.services.dir().join("state.json");
        let state = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let state: State = serde_json::from_slice(&state).with_context(|| path.display().to_string())?;
        Ok(state.processes.into_iter().map(|(name, process)| (name, process.pid)).collect())
    }
}

/// `count` frames of a size, no two with the same bytes.
pub(super) fn distinct_frames(size: Size, count: usize) -> anyhow::Result<Vec<Frame>> {
    let rendered = bench_frames(size)?;
    let tagged = rendered.iter().cycle().take(count).enumerate();
    tagged
        .map(|(number, frame)| {
            let bytes = with_tag(&frame.bytes, 0, number as u64).context("tagging a rendered frame")?;
            Ok(Frame { name: format!("{}-{number:04}.jpg", size.name()), bytes })
        })
        .collect()
}

/// Puts each frame as an object, and gives the objects' URLs.
pub(super) fn upload(servers: &Servers, frames: &[Frame]) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let s3 = servers.services.s3();
        let config = S3Config {
            endpoint: Some(s3.endpoint.clone()),
            region: Some(s3.region.clone()),
            credentials_file: Some(s3.credentials_file.clone()),
            ..S3Config::new(&s3.bucket)
        };
        let store = S3Store::open(config, LinkHealth::new(Link::S3)).await?;
        stream::iter(frames).map(|frame| upload_one(&store, frame)).buffered(AT_ONCE).try_collect().await
    })
}

async fn upload_one(store: &S3Store, frame: &Frame) -> anyhow::Result<String> {
    let key = BlobKey::new(format!("bench/{}", frame.name))?;
    store.put(&key, frame.bytes.clone().into(), "image/jpeg").await?;
    Ok(store.uri(&key))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_frames_have_the_same_name_or_bytes() {
        let frames = distinct_frames(Size::Vga, 70).unwrap();
        let names: HashSet<_> = frames.iter().map(|frame| &frame.name).collect();
        let bytes: HashSet<_> = frames.iter().map(|frame| &frame.bytes).collect();
        assert_eq!((names.len(), bytes.len()), (70, 70));
    }
}

//! Captures images as raw material for the next training set: selected by a rule, spooled on disk, sent to the object
//! storage asynchronously.
//!
//! ```text
//! offer -> (bounded channel) -> one writer thread -> <dir>/spool -> uploader task -> BlobStore
//!                                                                       \-> <dir>/dead, permanently refused images
//! ```
//! Capture is best effort: an image that finds the channel or the disk full is counted and skipped, and a request
//! never waits for it. Spooled images outlive the process and any time without a network.
//!
//! An image becomes two objects, `datasets/captured/<yyyy-mm-dd>/<camera>/<digest>.<ext>` and, put after it,
//! `<digest>.json` with the prediction: if the second exists, the first is whole. The same image (by digest) is sent
//! once: `sent` remembers more than 100,000 of them, and older ones are still found in the storage for the same day
//! and camera.
//!
//! # Map
//!
//! `config` the settings and which images; `item` one image, its sidecar and its names; `spool` the directory; `sent`
//! the images that are done; `upload` the task that empties the spool; `stats` the statistics. The writer thread is
//! here.

mod config;
mod item;
mod sent;
mod spool;
mod stats;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use config::{CaptureConfig, CaptureError, CaptureRule};
pub use item::{Captured, KEY_PREFIX};
pub use stats::CaptureStats;

use crate::backoff::Backoff;
use crate::blob::BlobStore;
use item::{Digest, Sidecar};
use sent::Sent;
use spool::Spool;
use stats::Counters;
use upload::Uploader;

/// Maximum images that wait for the writer.
const MAX_WAITING: usize = 64;

/// A running capture: the writer, the spool and the uploader.
#[derive(Debug)]
pub struct Capture {
    rule: CaptureRule,
    max_bytes: u64,
    max_waiting: u64,
    images: Mutex<Option<Sender<Captured>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    uploader: Mutex<Option<JoinHandle<()>>>,
    stop: watch::Sender<bool>,
    spool: Arc<Spool>,
    sent: Arc<Sent>,
    counters: Arc<Counters>,
}

impl Capture {
    /// Opens the spool, removes what a crash has left incomplete, and starts the writer and, on `runtime`, the
    /// uploader. Needs no network. Blocks while it lists the spool; not for async code.
    ///
    /// # Errors
    /// [`CaptureError::Setting`], and [`CaptureError::Io`] when the directory cannot be used.
    pub fn open(
        config: CaptureConfig,
        store: Arc<dyn BlobStore>,
        runtime: &Handle,
    ) -> Result<Self, CaptureError> {
        config.rule.check()?;
        if config.max_bytes == 0 {
            let bound = "at least 1".into();
            return Err(CaptureError::Setting { setting: "max_bytes", value: "0".into(), bound });
        }
        let counters = Arc::new(Counters::default());
        let spool = Arc::new(Spool::open(&config.dir, config.max_bytes / 10)?);
        let sent = Arc::new(Sent::open(&config.dir)?);
        let (images, waiting) = crossbeam_channel::bounded(MAX_WAITING);
        let (stop, stopped) = watch::channel(false);
        let uploader = Uploader {
            store,
            spool: Arc::clone(&spool),
            sent: Arc::clone(&sent),
            counters: Arc::clone(&counters),
            backoff: Backoff::new(config.backoff_initial, config.backoff_max),
            stopped,
        };
        let writer = Writer {
            node: config.node,
            spool: Arc::clone(&spool),
            counters: Arc::clone(&counters),
            healthy: true,
        };
        let writer = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || writer.run(&waiting))
            .map_err(|e| CaptureError::io("start the writer of", &config.dir, e))?;
        Ok(Self {
            rule: config.rule,
            max_bytes: config.max_bytes,
            max_waiting: config.max_waiting,
            images: Mutex::new(Some(images)),
            writer: Mutex::new(Some(writer)),
            uploader: Mutex::new(Some(runtime.spawn(uploader.run()))),
            stop,
            spool,
            sent,
            counters,
        })
    }

    /// Whether the rule selects an image: for callers that would have to copy it first.
    #[must_use]
    pub fn wants(&self, digest: &str, confidence: f32) -> bool {
        Digest::parse(digest).is_some_and(|digest| self.rule.matches(digest, confidence))
    }

    /// Captures an image whose request has been answered, if the rule selects it. Never blocks and never fails: what
    /// does not fit is counted as skipped.
    pub fn offer(&self, image: Captured) {
        let Some(digest) = Digest::parse(&image.digest) else {
            tracing::warn!(digest = image.digest, "not captured: the digest is not 64 hex digits");
            self.counters.skip();
            return;
        };
        if !self.rule.matches(digest, image.confidence) {
            return;
        }
        if self.sent.contains(digest) {
            self.counters.deduplicate();
            return;
        }
        let bytes = image.bytes.len() as u64;
        if !self.counters.reserve(bytes, self.max_waiting, self.spool.bytes(), self.max_bytes) {
            self.counters.skip();
            return;
        }
        // Cloned, so that a slow writer cannot make one offer wait for another.
        let images = self.images.lock().clone();
        if images.is_none_or(|images| images.try_send(image).is_err()) {
            self.counters.release(bytes);
            self.counters.skip();
        }
    }

    /// Damaged files that were quarantined when it was opened.
    #[must_use]
    pub fn quarantined(&self) -> &[PathBuf] {
        self.sent.quarantined()
    }

    /// Current statistics.
    #[must_use]
    pub fn stats(&self) -> CaptureStats {
        self.counters.stats(&self.spool)
    }

    /// Writes pending images and stops: the uploader finishes the images that it has started, if that takes no more
    /// than `within`. The rest stays in the spool for the next start.
    pub async fn close(&self, within: Duration) {
        self.images.lock().take();
        let writer = self.writer.lock().take();
        let uploader = self.uploader.lock().take();
        let all = async {
            if let Some(writer) = writer {
                // A writer that has panicked has nothing left to finish.
                let _ = tokio::task::spawn_blocking(move || writer.join()).await;
            }
            self.stop.send_replace(true);
            if let Some(mut uploader) = uploader {
                let _ = (&mut uploader).await;
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            self.stop.send_replace(true);
            tracing::warn!("the uploader of captured images did not finish in time");
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

#[derive(Debug)]
struct Writer {
    node: String,
    spool: Arc<Spool>,
    counters: Arc<Counters>,
    /// Whether the last write succeeded: the first failure after a success is logged.
    healthy: bool,
}

impl Writer {
    /// Runs until the last sender is dropped and nothing is pending.
    fn run(mut self, waiting: &Receiver<Captured>) {
        for image in waiting {
            let bytes = image.bytes.len() as u64;
            self.take(&image);
            // Only now: until it is in the spool it counts as waiting, so it always counts as one of the two.
            self.counters.release(bytes);
        }
    }

    fn take(&mut self, image: &Captured) {
        match self.spool.write(&Sidecar::new(image, &self.node), &image.bytes) {
            Ok(true) => self.healthy = true,
            Ok(false) => self.counters.deduplicate(),
            Err(error) => {
                let error = format!("cannot spool a captured image: {error}");
                if std::mem::replace(&mut self.healthy, false) {
                    tracing::warn!(error, "captured images are skipped");
                }
                self.counters.fail(error);
                // Last: whoever sees the count also sees the error.
                self.counters.skip();
            }
        }
    }
}

#[cfg(test)]
mod tests;

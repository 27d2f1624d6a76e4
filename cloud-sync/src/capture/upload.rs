//! The task that sends captured images from the spool to the object storage.
//!
//! While the storage is unavailable it waits with backoff. A permanent refusal may be caused by the image or by the
//! storage itself (a wrong key, a missing bucket), and a misconfiguration must not move the whole spool to the dead:
//! a refused image is set aside, and moves to the dead when it is refused again after another one has been accepted.

use std::collections::HashSet;
use std::future::ready;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::item::Digest;
use super::sent::Sent;
use super::spool::{Loaded, Pair, Spool};
use super::stats::Counters;
use crate::backoff::Backoff;
use crate::blob::BlobStore;
use crate::error::{Link, SyncError, SyncResult};

/// Maximum concurrent uploads: each image is in memory.
const MAX_CONCURRENT: usize = 4;
/// Images per listing of the spool.
const LISTING_IMAGES: usize = 256;
/// After this many refusals without a success the storage itself is at fault.
const MAX_REFUSALS: usize = 3;

#[derive(Debug)]
pub(super) struct Uploader {
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) spool: Arc<Spool>,
    pub(super) sent: Arc<Sent>,
    pub(super) counters: Arc<Counters>,
    pub(super) backoff: Backoff,
    pub(super) stopped: watch::Receiver<bool>,
}

/// Outcome of one image.
#[derive(Debug)]
enum Outcome {
    /// It is in the storage, sent now or earlier.
    There,
    /// It was incomplete, or was removed meanwhile.
    Gone,
    Refused(Digest, SyncError),
    Failed(SyncError),
}

/// Outcome of one listing.
#[derive(Debug)]
enum Pass {
    Empty,
    More,
    Failed(String),
}

impl Uploader {
    /// Runs until it is stopped.
    pub(super) async fn run(mut self) {
        let mut aside = HashSet::new();
        while !*self.stopped.borrow() {
            match self.pass(&mut aside).await {
                Pass::More => self.backoff.succeed(),
                Pass::Empty => {
                    let mut stopped = self.stopped.clone();
                    tokio::select! {
                        () = self.spool.arrived.notified() => {}
                        _ = stopped.wait_for(|stop| *stop) => {}
                    }
                }
                Pass::Failed(error) => {
                    if self.backoff.failures() == 0 {
                        tracing::warn!(error, "cannot send captured images; they wait in the spool");
                    }
                    self.counters.fail(error);
                    let wait = self.backoff.fail();
                    let mut stopped = self.stopped.clone();
                    // The only other outcome is that the sender was dropped, which cannot happen before the stop.
                    let _ = tokio::time::timeout(wait, stopped.wait_for(|stop| *stop)).await;
                }
            }
        }
    }

    async fn pass(&self, aside: &mut HashSet<Digest>) -> Pass {
        let mut waiting = self.list(aside).await;
        if !aside.is_empty() && waiting.as_ref().is_ok_and(Vec::is_empty) {
            // All remaining images were refused, perhaps through the fault of the storage: start over.
            aside.clear();
            waiting = self.list(aside).await;
        }
        let waiting = match waiting {
            Ok(waiting) if waiting.is_empty() => return Pass::Empty,
            Ok(waiting) => waiting,
            Err(error) => return Pass::Failed(format!("cannot read the spool of captured images: {error}")),
        };
        let (mut proven, mut refusals, mut last) = (false, 0, None);
        let going = stream::iter(waiting).take_while(|_| ready(!*self.stopped.borrow()));
        let mut going =
            std::pin::pin!(going.map(|digest| self.send(digest)).buffer_unordered(MAX_CONCURRENT));
        while let Some(outcome) = going.next().await {
            match outcome {
                Outcome::There => proven = true,
                Outcome::Gone => {}
                Outcome::Failed(error) => return Pass::Failed(error.in_full()),
                Outcome::Refused(digest, error) => {
                    refusals += 1;
                    aside.insert(digest);
                    last = Some(error.in_full());
                }
            }
            if !proven && refusals >= MAX_REFUSALS {
                break;
            }
        }
        match last {
            _ if proven => self.retry_refused(aside).await,
            Some(error) => Pass::Failed(error),
            None => Pass::More,
        }
    }

    /// Retries what was set aside, now that the storage is known to accept images.
    async fn retry_refused(&self, aside: &mut HashSet<Digest>) -> Pass {
        for digest in std::mem::take(aside) {
            if *self.stopped.borrow() {
                break;
            }
            match self.send(digest).await {
                Outcome::There | Outcome::Gone => {}
                Outcome::Failed(error) => return Pass::Failed(error.in_full()),
                Outcome::Refused(digest, error) => {
                    if let Err(error) = self.move_to_dead(digest, error.in_full()).await {
                        return Pass::Failed(format!("cannot move a refused image: {error}"));
                    }
                }
            }
        }
        Pass::More
    }

    async fn list(&self, aside: &mut HashSet<Digest>) -> io::Result<Vec<Digest>> {
        let (spool, but) = (Arc::clone(&self.spool), std::mem::take(aside));
        let (found, but) = blocking(move || {
            let found: io::Result<Vec<(Digest, PathBuf)>> = spool.waiting(LISTING_IMAGES, &but);
            Ok((found, but))
        })
        .await?;
        *aside = but;
        Ok(found?.into_iter().map(|(digest, _)| digest).collect())
    }

    async fn send(&self, digest: Digest) -> Outcome {
        let spool = Arc::clone(&self.spool);
        let pair = match blocking(move || spool.load(digest)).await {
            Ok(Loaded::Pair(pair)) => pair,
            Ok(Loaded::Broken) => return self.discard(digest).await,
            Err(error) => return unreadable(error),
        };
        match self.put(&pair).await {
            Ok(true) => self.counters.send(),
            Ok(false) => self.counters.deduplicate(),
            Err(error) if error.is_transient() => return Outcome::Failed(error),
            Err(error) => return Outcome::Refused(digest, error),
        }
        // Recorded first: a crash in between costs a query of the storage, never a second copy.
        self.sent.add(digest);
        let spool = Arc::clone(&self.spool);
        match blocking(move || spool.remove(&pair)).await {
            Ok(()) => Outcome::There,
            Err(error) => unreadable(error),
        }
    }

    /// Puts the image and then the sidecar; false when they exist already.
    async fn put(&self, pair: &Pair) -> SyncResult<bool> {
        let keys = pair.sidecar.keys();
        let (image, json) =
            keys.map_err(|e| SyncError::permanent(Link::S3, "a captured image").because(e))?;
        if self.store.head(&json).await?.is_some() {
            return Ok(false);
        }
        self.store.put(&image, pair.image.clone(), &pair.sidecar.content_type()).await?;
        self.store.put(&json, pair.json.clone(), "application/json").await?;
        Ok(true)
    }

    async fn discard(&self, digest: Digest) -> Outcome {
        let spool = Arc::clone(&self.spool);
        match blocking(move || spool.discard(digest)).await {
            Ok(()) => {
                self.counters.skip();
                tracing::warn!(digest = digest.hex(), "skipping an incomplete captured image");
                Outcome::Gone
            }
            Err(error) => unreadable(error),
        }
    }

    /// Moves a refused image to the dead.
    async fn move_to_dead(&self, digest: Digest, reason: String) -> io::Result<()> {
        let (spool, why) = (Arc::clone(&self.spool), reason.clone());
        let kept = blocking(move || match spool.load(digest)? {
            Loaded::Pair(pair) => spool.move_to_dead(&pair, &why),
            Loaded::Broken => spool.discard(digest).map(|()| false),
        });
        let kept = kept.await?;
        // So that it is not captured again, only to be refused again.
        self.sent.add(digest);
        self.counters.refuse();
        tracing::warn!(digest = digest.hex(), reason, kept, "a captured image was refused permanently");
        Ok(())
    }
}

fn unreadable(error: io::Error) -> Outcome {
    let what = "the spool of captured images";
    Outcome::Failed(SyncError::transient(Link::Disk, what).because(error))
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(act).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

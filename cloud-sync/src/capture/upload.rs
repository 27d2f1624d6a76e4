//! The task that takes captured images from the spool to the object storage.
//!
//! A storage that is away is waited for, with backoff. A permanent refusal may mean the image or the storage
//! itself (a wrong key, a missing bucket), and the whole spool must not go to the dead for a typing error: an
//! image that is refused is set aside, and moves to the dead when it is refused again after another one has
//! got through.

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

/// Images under way at once: each is in memory.
const AT_ONCE: usize = 4;
/// Images of one listing of the spool.
const AT_A_TIME: usize = 256;
/// So many refusals, and nothing that got through: it is the storage.
const REFUSALS: usize = 3;

#[derive(Debug)]
pub(super) struct Uploader {
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) spool: Arc<Spool>,
    pub(super) sent: Arc<Sent>,
    pub(super) counters: Arc<Counters>,
    pub(super) backoff: Backoff,
    pub(super) stopped: watch::Receiver<bool>,
}

/// What became of one image.
#[derive(Debug)]
enum Outcome {
    /// It is in the storage, by us now or from before.
    There,
    /// It was not whole, or has gone meanwhile.
    Gone,
    Refused(Digest, SyncError),
    Failed(SyncError),
}

/// What became of one listing.
#[derive(Debug)]
enum Pass {
    Empty,
    More,
    Failed(String),
}

impl Uploader {
    /// Until it is told to stop.
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
                        tracing::warn!(error, "captured images wait: they cannot be sent");
                    }
                    self.counters.fail(error);
                    let wait = self.backoff.fail();
                    let mut stopped = self.stopped.clone();
                    // Waiting out its time without the stop is what an error would be, and that cannot be.
                    let _ = tokio::time::timeout(wait, stopped.wait_for(|stop| *stop)).await;
                }
            }
        }
    }

    async fn pass(&self, aside: &mut HashSet<Digest>) -> Pass {
        let mut waiting = self.list(aside).await;
        if !aside.is_empty() && waiting.as_ref().is_ok_and(Vec::is_empty) {
            // All that is left was refused, and perhaps it was the storage's fault: once more from the start.
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
        let mut going = std::pin::pin!(going.map(|digest| self.send(digest)).buffer_unordered(AT_ONCE));
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
            if !proven && refusals >= REFUSALS {
                break;
            }
        }
        match last {
            _ if proven => self.once_more(aside).await,
            Some(error) => Pass::Failed(error),
            None => Pass::More,
        }
    }

    /// Tries what was set aside again, now that the storage is known to take images.
    async fn once_more(&self, aside: &mut HashSet<Digest>) -> Pass {
        for digest in std::mem::take(aside) {
            if *self.stopped.borrow() {
                break;
            }
            match self.send(digest).await {
                Outcome::There | Outcome::Gone => {}
                Outcome::Failed(error) => return Pass::Failed(error.in_full()),
                Outcome::Refused(digest, error) => {
                    if let Err(error) = self.bury(digest, error.in_full()).await {
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
            let found: io::Result<Vec<(Digest, PathBuf)>> = spool.waiting(AT_A_TIME, &but);
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
        // Remembered first: a crash in between costs a look at the storage, never a second copy.
        self.sent.add(digest);
        let spool = Arc::clone(&self.spool);
        match blocking(move || spool.remove(&pair)).await {
            Ok(()) => Outcome::There,
            Err(error) => unreadable(error),
        }
    }

    /// Puts the image and then the sidecar; false when they were there.
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
                tracing::warn!(digest = digest.hex(), "a captured image was not whole, and is left out");
                Outcome::Gone
            }
            Err(error) => unreadable(error),
        }
    }

    /// Moves what was refused to the dead.
    async fn bury(&self, digest: Digest, reason: String) -> io::Result<()> {
        let (spool, why) = (Arc::clone(&self.spool), reason.clone());
        let kept = blocking(move || match spool.load(digest)? {
            Loaded::Pair(pair) => spool.bury(&pair, &why),
            Loaded::Broken => spool.discard(digest).map(|()| false),
        });
        let kept = kept.await?;
        // Not to be captured again, only to be refused again.
        self.sent.add(digest);
        self.counters.bury();
        tracing::warn!(digest = digest.hex(), reason, kept, "a captured image is refused for good");
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

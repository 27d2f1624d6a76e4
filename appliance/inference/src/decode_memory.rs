//! Memory for decoding: a budget that all lanes of all models share (`image.decode_memory`). An image reserves the upper bound
//! that follows from its header before it enters a lane's queue, and holds the reservation until it is decoded.
//!
//! Images that need at most a quarter of the budget are small. A quarter is reserved for them, so that they are decoded while
//! large ones wait. Beyond that, small and large images are served first come, first served, so neither kind starves the
//! other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gpu_kernels::ImageHeader;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit of accounting in bytes: a semaphore hands out less than 2^32 permits at once.
const PERMIT_BYTES: u64 = 1 << 10;
/// The fraction of the budget that is reserved for small images, and the most that a small image needs.
const SMALL_PART: usize = 4;

/// Decoding the image exceeds the whole budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "decoding this image may take {needs} bytes of memory; at most {limit} may be used (image.decode_memory)"
)]
pub struct TooCostly {
    /// Upper bound for decoding the image, in bytes.
    pub needs: u64,
    /// The budget in bytes.
    pub limit: u64,
}

/// The budget for decoding.
#[derive(Debug)]
pub struct DecodeMemory {
    limit: u64,
    /// Permits for small images only.
    small: Arc<Semaphore>,
    /// Permits for all images.
    common: Arc<Semaphore>,
    permits: (usize, usize),
    waiting: Waiting,
}

/// Images that wait for memory.
#[derive(Debug, Default)]
struct Waiting {
    small: AtomicUsize,
    large: AtomicUsize,
    urgent: AtomicUsize,
}

/// Reserved memory for decoding one image; released when it is dropped.
#[derive(Debug, Default)]
pub struct Reservation {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

/// Increments a counter for its lifetime.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DecodeMemory {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        let permits = permits(limit) as usize;
        let small = permits / SMALL_PART;
        let common = permits - small;
        Arc::new(Self {
            limit,
            small: Arc::new(Semaphore::new(small)),
            common: Arc::new(Semaphore::new(common)),
            permits: (small, common),
            waiting: Waiting::default(),
        })
    }

    /// A budget that no image exceeds: for lanes that only compute known images.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    /// The budget in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Reserved bytes.
    pub fn used(&self) -> u64 {
        let free = self.small.available_permits() + self.common.available_permits();
        (self.permits.0 + self.permits.1).saturating_sub(free) as u64 * PERMIT_BYTES
    }

    /// Images that wait for memory.
    pub fn waiting(&self) -> usize {
        self.waiting.small.load(Ordering::Relaxed) + self.waiting.large.load(Ordering::Relaxed)
    }

    /// Whether a real-time image waits: batch work that holds a reservation should then be finished first.
    pub fn is_wanted(&self) -> bool {
        self.waiting.urgent.load(Ordering::Relaxed) > 0
    }

    /// Images that wait in the same size class (small or large) as one that needs this many bytes.
    pub fn waiting_like(&self, needs: u64) -> usize {
        self.queue(needs).load(Ordering::Relaxed)
    }

    fn queue(&self, needs: u64) -> &AtomicUsize {
        if self.is_small(permits(needs)) { &self.waiting.small } else { &self.waiting.large }
    }

    fn is_small(&self, permits: u32) -> bool {
        permits as usize <= self.permits.0
    }

    /// Rejects an image that exceeds the budget.
    ///
    /// # Errors
    /// [`TooCostly`].
    pub fn check(&self, needs: u64) -> Result<(), TooCostly> {
        if needs > self.limit { Err(TooCostly { needs, limit: self.limit }) } else { Ok(()) }
    }

    /// Reserves without waiting.
    pub fn try_reserve(&self, needs: u64) -> Option<Reservation> {
        let permits = permits(needs);
        let take = |of: &Arc<Semaphore>, permits| Arc::clone(of).try_acquire_many_owned(permits).ok();
        if self.is_small(permits) {
            let room = take(&self.small, permits).or_else(|| take(&self.common, permits))?;
            return Some(Reservation { _permits: [Some(room), None] });
        }
        let (common, rest) = self.parts(permits);
        let common = take(&self.common, common)?;
        Some(Reservation { _permits: [Some(common), Some(take(&self.small, rest)?)] })
    }

    /// Reserves, waiting for memory; `urgent` if a client waits for the answer. Dropping the future cancels the wait.
    ///
    /// # Errors
    /// [`TooCostly`] if the image exceeds the budget.
    pub async fn reserve(&self, needs: u64, urgent: bool) -> Result<Reservation, TooCostly> {
        self.check(needs)?;
        if let Some(room) = self.try_reserve(needs) {
            return Ok(room);
        }
        let _waiting = Counted::new(self.queue(needs));
        let _urgent = urgent.then(|| Counted::new(&self.waiting.urgent));
        let permits = permits(needs);
        let take = |of: &Arc<Semaphore>, permits| Arc::clone(of).acquire_many_owned(permits);
        // These semaphores are never closed.
        let permits = if self.is_small(permits) {
            let room = tokio::select! {
                biased;
                room = take(&self.small, permits) => room,
                room = take(&self.common, permits) => room,
            };
            [room.ok(), None]
        } else {
            // In this order; small images hold permits of one semaphore and do not wait for the other.
            let (common, rest) = self.parts(permits);
            let common = take(&self.common, common).await;
            [common.ok(), take(&self.small, rest).await.ok()]
        };
        Ok(Reservation { _permits: permits })
    }

    /// How a large image is split between the common part and, where that is too small, the part for small images.
    fn parts(&self, permits: u32) -> (u32, u32) {
        let common = permits.min(u32::try_from(self.permits.1).unwrap_or(u32::MAX));
        (common, permits - common)
    }
}

/// Upper bound on the memory that decoding an image takes, in bytes.
pub fn decode_cost(header: &ImageHeader) -> u64 {
    header.decode_memory
}

fn permits(bytes: u64) -> u32 {
    // A budget beyond 4 TiB is treated as 4 TiB.
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    const MIB: u64 = 1 << 20;

    /// Reserves within a short time.
    async fn gets(memory: &Arc<DecodeMemory>, needs: u64) -> Option<Reservation> {
        let room = memory.reserve(needs, true);
        tokio::time::timeout(Duration::from_millis(30), room).await.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn what_never_fits_is_refused_at_once_and_what_just_fits_is_not() {
        let memory = DecodeMemory::new(100 * MIB);
        let refused = memory.reserve(100 * MIB + 1, true).await.unwrap_err();
        assert_eq!(refused, TooCostly { needs: 100 * MIB + 1, limit: 100 * MIB });
        let message = refused.to_string();
        assert!(message.contains("104857601") && message.contains("104857600"), "{message}");
        let all = gets(&memory, 100 * MIB).await.unwrap();
        assert_eq!(memory.used(), 100 * MIB);
        assert!(memory.try_reserve(1).is_none());
        drop(all);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn small_images_get_room_while_large_ones_wait() {
        let memory = DecodeMemory::new(100 * MIB);
        let first = gets(&memory, 70 * MIB).await.unwrap();
        let waiting: Vec<_> = (0..16)
            .map(|_| {
                let memory = Arc::clone(&memory);
                tokio::spawn(async move { memory.reserve(70 * MIB, true).await.unwrap() })
            })
            .collect();
        while memory.waiting() < 16 {
            tokio::task::yield_now().await;
        }
        assert!(memory.is_wanted() && memory.waiting_like(MIB) == 0);
        for _ in 0..100 {
            drop(gets(&memory, 10 * MIB).await.unwrap());
        }
        drop(first);
        for large in waiting {
            drop(large.await.unwrap());
        }
        assert_eq!((memory.used(), memory.waiting(), memory.is_wanted()), (0, 0, false));
    }

    #[tokio::test]
    async fn a_stream_of_small_images_does_not_starve_a_large_one() {
        let memory = DecodeMemory::new(100 * MIB);
        let mut small: std::collections::VecDeque<_> =
            std::iter::from_fn(|| memory.try_reserve(20 * MIB)).collect();
        assert!(small.len() >= 4);
        let large = {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.reserve(75 * MIB, true).await.unwrap() })
        };
        while memory.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        // As soon as a small one is done, the next one takes what is free.
        let mut rounds = 0;
        while !large.is_finished() {
            drop(small.pop_front());
            tokio::task::yield_now().await;
            small.extend(memory.try_reserve(20 * MIB));
            tokio::task::yield_now().await;
            rounds += 1;
            assert!(rounds < 100, "the large image starves");
        }
        drop(large.await.unwrap());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing_behind() {
        let memory = DecodeMemory::new(100 * MIB);
        let held = memory.try_reserve(75 * MIB).unwrap();
        for _ in 0..10 {
            assert!(gets(&memory, 80 * MIB).await.is_none());
        }
        assert_eq!((memory.waiting(), memory.used()), (0, 75 * MIB));
        drop(held);
        assert!(gets(&memory, 100 * MIB).await.is_some());
    }
}

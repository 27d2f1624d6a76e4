//! Memory for decoding: a budget that all lanes of all models share (`image.decode_memory`). An image reserves what its
//! header says that decoding may take, before it enters a lane's queue, and holds it until it is decoded.
//!
//! Images that need at most a quarter of the budget are small. A quarter is kept for them, so that they are decoded while
//! large ones wait; what they take beyond it they take in turn with large ones, first come, first served: neither kind starves
//! the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gpu_kernels::ImageHeader;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory is counted in pieces of so many bytes: a semaphore gives out less than 2^32 permits at once.
const PERMIT_BYTES: u64 = 1 << 10;
/// The part of the budget that is kept for small images, and the most that a small image needs.
const SMALL_PART: usize = 4;

/// Decoding the image takes more than the whole budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "decoding this image may take {needs} bytes of memory; at most {limit} may be used (image.decode_memory)"
)]
pub struct TooCostly {
    /// Bytes that decoding may take.
    pub needs: u64,
    /// The budget.
    pub limit: u64,
}

/// The budget.
#[derive(Debug)]
pub struct DecodeMemory {
    limit: u64,
    /// For small images alone.
    small: Arc<Semaphore>,
    /// For all.
    common: Arc<Semaphore>,
    pieces: (usize, usize),
    waiting: Waiting,
}

/// Images that wait for room.
#[derive(Debug, Default)]
struct Waiting {
    small: AtomicUsize,
    large: AtomicUsize,
    urgent: AtomicUsize,
}

/// Room for decoding one image; released when it is dropped.
#[derive(Debug, Default)]
pub struct Room {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

/// Counts for as long as it lives.
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
    /// A budget of so many bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        let pieces = pieces(limit) as usize;
        let small = pieces / SMALL_PART;
        let common = pieces - small;
        Arc::new(Self {
            limit,
            small: Arc::new(Semaphore::new(small)),
            common: Arc::new(Semaphore::new(common)),
            pieces: (small, common),
            waiting: Waiting::default(),
        })
    }

    /// More than any image needs: for lanes that are given known images only.
    pub fn unlimited() -> Arc<Self> {
        Self::new(u64::MAX)
    }

    /// The budget in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are reserved.
    pub fn used(&self) -> u64 {
        let free = self.small.available_permits() + self.common.available_permits();
        (self.pieces.0 + self.pieces.1).saturating_sub(free) as u64 * PERMIT_BYTES
    }

    /// Images that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.small.load(Ordering::Relaxed) + self.waiting.large.load(Ordering::Relaxed)
    }

    /// Whether somebody waits in real time: then batch work that has room is to be done with soon.
    pub fn is_wanted(&self) -> bool {
        self.waiting.urgent.load(Ordering::Relaxed) > 0
    }

    /// Images that wait of the kind of one that needs so many bytes: small or large.
    pub fn waiting_like(&self, needs: u64) -> usize {
        self.queue(needs).load(Ordering::Relaxed)
    }

    fn queue(&self, needs: u64) -> &AtomicUsize {
        if self.is_small(pieces(needs)) { &self.waiting.small } else { &self.waiting.large }
    }

    fn is_small(&self, pieces: u32) -> bool {
        pieces as usize <= self.pieces.0
    }

    /// Refuses what can never fit.
    ///
    /// # Errors
    /// [`TooCostly`].
    pub fn check(&self, needs: u64) -> Result<(), TooCostly> {
        if needs > self.limit { Err(TooCostly { needs, limit: self.limit }) } else { Ok(()) }
    }

    /// Room now, or none.
    pub fn try_reserve(&self, needs: u64) -> Option<Room> {
        let pieces = pieces(needs);
        let take = |of: &Arc<Semaphore>, pieces| Arc::clone(of).try_acquire_many_owned(pieces).ok();
        if self.is_small(pieces) {
            let room = take(&self.small, pieces).or_else(|| take(&self.common, pieces))?;
            return Some(Room { _permits: [Some(room), None] });
        }
        let (common, rest) = self.parts(pieces);
        let common = take(&self.common, common)?;
        Some(Room { _permits: [Some(common), Some(take(&self.small, rest)?)] })
    }

    /// Room as soon as there is some; `urgent` says whether somebody waits for the answer. Dropping the future gives up.
    ///
    /// # Errors
    /// [`TooCostly`] when there never will be.
    pub async fn reserve(&self, needs: u64, urgent: bool) -> Result<Room, TooCostly> {
        self.check(needs)?;
        if let Some(room) = self.try_reserve(needs) {
            return Ok(room);
        }
        let _waiting = Counted::new(self.queue(needs));
        let _urgent = urgent.then(|| Counted::new(&self.waiting.urgent));
        let pieces = pieces(needs);
        let take = |of: &Arc<Semaphore>, pieces| Arc::clone(of).acquire_many_owned(pieces);
        // Nobody closes these semaphores.
        let permits = if self.is_small(pieces) {
            let room = tokio::select! {
                biased;
                room = take(&self.small, pieces) => room,
                room = take(&self.common, pieces) => room,
            };
            [room.ok(), None]
        } else {
            // In this order; small images hold one of the two and wait for nothing more.
            let (common, rest) = self.parts(pieces);
            let common = take(&self.common, common).await;
            [common.ok(), take(&self.small, rest).await.ok()]
        };
        Ok(Room { _permits: permits })
    }

    /// What a large image takes of the common part, and of the small images' part where that is not enough.
    fn parts(&self, pieces: u32) -> (u32, u32) {
        let common = pieces.min(u32::try_from(self.pieces.1).unwrap_or(u32::MAX));
        (common, pieces - common)
    }
}

/// Bytes of memory that decoding an image may take.
pub fn decode_cost(header: &ImageHeader) -> u64 {
    header.decode_memory
}

fn pieces(bytes: u64) -> u32 {
    // A budget beyond 4 TiB is as good as 4 TiB.
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    const MIB: u64 = 1 << 20;

    /// Whether it gets room within a moment.
    async fn gets(memory: &Arc<DecodeMemory>, needs: u64) -> Option<Room> {
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
        // As soon as a small one is done the next one comes, and takes what it gets.
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

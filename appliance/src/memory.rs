//! Memory for encoded images and the bodies that contain them: one budget for requests, fetches and batch loads.
//!
//! A reservation is made before anything is allocated for it, and travels with the bytes: [`Reservation::hold`] ties it to
//! them, and it is released when their last clone is dropped, wherever that is (a lane's queue, a shadow, a capture).
//!
//! A request never waits for memory: where there is none it is refused. Batch loads wait, and together take no more than
//! half of the budget, so that batches do not cause requests to be refused.

mod buffer_pool;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use buffer_pool::{Buffer, BufferPool};

/// Bytes reserved and allocated at once for a body of declared length: enough for a camera's frame. The rest follows as it
/// arrives, so that a client that sends nothing holds no more.
const INITIAL_BYTES: usize = 2 << 20;

/// The budget is used up by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bodies of other requests fill the memory for bodies (http.max_inflight); try again")]
pub struct NoRoom;

/// The budget.
#[derive(Debug)]
pub struct BodyMemory {
    room: Arc<Semaphore>,
    /// The part of it that batch loads may take.
    batch: Arc<Semaphore>,
    limit: usize,
    buffers: Arc<BufferPool>,
}

/// A part of the budget; released when dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: Arc<BodyMemory>,
    held: Option<OwnedSemaphorePermit>,
    /// The same of the part for batch loads; none for requests.
    batch: Option<OwnedSemaphorePermit>,
}

impl BodyMemory {
    /// A budget of `limit` bytes, of which one image takes up to `largest`.
    pub fn new(limit: usize, largest: usize) -> Arc<Self> {
        // An image must fit, or it would wait for ever.
        let limit = limit.max(largest).min(Semaphore::MAX_PERMITS);
        let batch = (limit / 2).max(largest);
        Arc::new(Self {
            room: Arc::new(Semaphore::new(limit)),
            batch: Arc::new(Semaphore::new(batch)),
            limit,
            buffers: Arc::default(),
        })
    }

    /// Bytes reserved.
    pub fn used(&self) -> usize {
        self.limit.saturating_sub(self.room.available_permits())
    }

    /// Bytes in all.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// An empty reservation for a request.
    pub fn share(self: &Arc<Self>) -> Reservation {
        Reservation { memory: Arc::clone(self), held: None, batch: None }
    }

    /// Reserves `bytes` for a request.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation, NoRoom> {
        let mut share = self.share();
        share.grow_to(bytes)?;
        Ok(share)
    }

    /// Reserves `bytes` for a batch load, no more than the largest image; waits until there is room.
    pub async fn reserve_for_batch(self: &Arc<Self>, bytes: usize) -> Reservation {
        // In this order everywhere: a holder of `room` waits for neither. The semaphores are never closed.
        let batch = Arc::clone(&self.batch).acquire_many_owned(permits(bytes)).await.ok();
        let held = Arc::clone(&self.room).acquire_many_owned(permits(bytes)).await.ok();
        Reservation { memory: Arc::clone(self), held, batch }
    }

    /// An empty reservation for a batch load.
    pub fn share_for_batch(self: &Arc<Self>) -> Reservation {
        let batch = Arc::clone(&self.batch).try_acquire_many_owned(0).ok();
        Reservation { batch, ..self.share() }
    }

    /// Begins a body of `declared` bytes (0 where unknown), at most `most`.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn body(self: &Arc<Self>, declared: usize, most: usize) -> Result<Body, NoRoom> {
        let first = BufferPool::size_for(declared.min(INITIAL_BYTES));
        let mut share = self.reserve(first)?;
        let buffer = self.buffers.take(first);
        share.grow_to(buffer.capacity())?;
        Ok(Body { buffer, share, most: if declared > 0 { declared } else { most } })
    }
}

impl Reservation {
    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Grows it to at least `bytes`.
    ///
    /// # Errors
    /// [`NoRoom`]; it is unchanged then.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let more = permits(bytes.saturating_sub(self.bytes()));
        if more == 0 {
            return Ok(());
        }
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(more).map_err(|_| NoRoom);
        let batch = self.batch.as_ref().map(|_| take(&self.memory.batch)).transpose()?;
        merge(&mut self.held, take(&self.memory.room)?);
        if let Some(batch) = batch {
            merge(&mut self.batch, batch);
        }
        Ok(())
    }

    /// Releases what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        for held in [&mut self.held, &mut self.batch].into_iter().flatten() {
            drop(held.split(held.num_permits().saturating_sub(bytes)));
        }
    }

    /// The budget.
    pub fn memory(&self) -> &Arc<BodyMemory> {
        &self.memory
    }

    /// Ties the reservation to `bytes`, together with others, until the last of them is dropped.
    pub fn hold_shared(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _share: Arc::clone(self) })
    }

    /// Ties as much of the reservation as is needed to `bytes`, until their last clone is dropped.
    pub fn hold(mut self, bytes: Bytes) -> Bytes {
        self.shrink_to(bytes.len());
        Bytes::from_owner(Held { bytes, _share: self })
    }
}

fn merge(held: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match held {
        Some(held) => held.merge(more),
        none => *none = Some(more),
    }
}

/// Permits for `bytes`. A semaphore grants no more than `u32::MAX` at once; no image is as large.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Bytes with their reservation.
struct Held<B, S> {
    // Fields are dropped in this order.
    bytes: B,
    _share: S,
}

impl<B: AsRef<[u8]>, S> AsRef<[u8]> for Held<B, S> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// A body under construction.
#[derive(Debug)]
pub struct Body {
    buffer: Buffer,
    share: Reservation,
    most: usize,
}

impl Body {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.buffer.len() == 0
    }

    /// Appends; the memory for it is reserved before.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn extend(&mut self, part: &[u8]) -> Result<(), NoRoom> {
        let length = self.buffer.len() + part.len();
        if length > self.buffer.capacity() {
            let doubled = self.buffer.capacity().saturating_mul(2).min(self.most);
            let room = BufferPool::size_for(length.max(doubled));
            self.share.grow_to(room)?;
            self.buffer.grow_to(room);
        }
        self.buffer.extend(part);
        Ok(())
    }

    /// The content; memory and reservation are released when the last clone is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(Held { bytes: self.buffer, _share: self.share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    #[test]
    fn bytes_hold_their_share_until_the_last_clone_is_dropped() {
        let memory = BodyMemory::new(100, 50);
        let mut body = memory.body(40, 50).unwrap();
        assert_eq!(memory.used(), 40, "reserved before it is there");
        body.extend(&[7; 40]).unwrap();
        let bytes = body.freeze();
        let (clone, slice) = (bytes.clone(), bytes.slice(3..5));
        drop(bytes);
        drop(clone);
        assert_eq!(memory.used(), 40);
        assert_eq!(slice[..], [7, 7]);
        drop(slice);
        assert_eq!(memory.used(), 0);
        let held = memory.reserve(30).unwrap().hold(Bytes::from_static(b"12345"));
        assert_eq!(memory.used(), 5, "what it does not need goes back");
        drop(held);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_allocated() {
        let memory = BodyMemory::new(10 << 20, 8 << 20);
        let other = memory.reserve(9 << 20).unwrap();
        assert_eq!(memory.body(8 << 20, 8 << 20).unwrap_err(), NoRoom);
        let mut body = memory.body(0, 8 << 20).unwrap();
        body.extend(&vec![1; 1 << 20]).unwrap();
        let before = body.buffer.capacity();
        assert_eq!(body.extend(&[1]), Err(NoRoom));
        assert_eq!((body.buffer.capacity(), memory.used()), (before, 10 << 20));
        drop(other);
        body.extend(&[1]).unwrap();
        assert_eq!(memory.used(), body.buffer.capacity(), "what is allocated is what is reserved");
        drop(body);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_body_that_does_not_come_holds_little_and_a_large_one_comes_in_steps() {
        let memory = BodyMemory::new(64 << 20, 20 << 20);
        let mut body = memory.body(20 << 20, 20 << 20).unwrap();
        assert_eq!(memory.used(), INITIAL_BYTES);
        for _ in 0..20 {
            body.extend(&vec![0; 1 << 20]).unwrap();
            assert!(memory.used() <= 20 << 20 && memory.used() >= body.len());
        }
        assert_eq!((body.len(), memory.used()), (20 << 20, 20 << 20));
    }

    #[tokio::test]
    async fn batch_loads_wait_and_leave_half_to_requests() {
        let memory = BodyMemory::new(100, 50);
        let first = memory.reserve_for_batch(40).await;
        let waiting = memory.reserve_for_batch(20);
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
        let request = memory.reserve(50).unwrap();
        let mut more = memory.share_for_batch();
        assert!(more.grow_to(11).is_err());
        more.grow_to(10).unwrap();
        assert_eq!(memory.reserve(1).unwrap_err(), NoRoom);
        drop(first);
        let second = memory.reserve_for_batch(40).await;
        assert_eq!(memory.used(), 100);
        drop((second, more, request));
        assert_eq!((memory.used(), memory.batch.available_permits()), (0, 50));
    }
}

//! Slots for concurrent loads, shared fairly among batches.
//!
//! A free slot goes to the batch that has the fewest. No batch takes the last few: where one waits for servers that do
//! not answer, a later batch does not wait for their timeouts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// One slot per this many, rounded up, is reserved for batches that have none.
const SLOTS_PER_RESERVED: usize = 8;
/// With fewer slots than this, none is reserved.
const MIN_SLOTS: usize = 4;

/// The slots. Clones are the same slots.
#[derive(Clone, Debug)]
pub(super) struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Slots that only a batch without any may take.
    reserved: usize,
    batches: HashMap<String, Batch>,
    /// Requests so far.
    requests: u64,
}

#[derive(Debug, Default)]
struct Batch {
    used: usize,
    /// Waiting requests, each with its number in the order of all requests.
    waiting: VecDeque<(u64, oneshot::Sender<Slot>)>,
}

/// The right to load an image, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    batch: String,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        let count = count.max(1);
        let reserved = if count < MIN_SLOTS { 0 } else { count.div_ceil(SLOTS_PER_RESERVED) };
        Self(Arc::new(Mutex::new(State { free: count, reserved, batches: HashMap::new(), requests: 0 })))
    }

    /// Waits for a slot.
    pub(super) async fn acquire(&self, batch: &str) -> Slot {
        let (sender, granted) = oneshot::channel();
        {
            let mut state = self.0.lock();
            state.requests += 1;
            let number = state.requests;
            state.batches.entry(batch.to_owned()).or_default().waiting.push_back((number, sender));
        }
        self.grant();
        match granted.await {
            Ok(slot) => slot,
            // A waiting request is always granted, unless all slots are dropped with their owner.
            Err(_) => std::future::pending().await,
        }
    }

    /// Grants free slots to waiting requests.
    fn grant(&self) {
        loop {
            let next = self.0.lock().next();
            let Some((batch, sender)) = next else { return };
            // A request that was dropped returns the slot at once.
            drop(sender.send(Slot { slots: self.clone(), batch }));
        }
    }
}

impl State {
    /// Takes a slot for the next request.
    fn next(&mut self) -> Option<(String, oneshot::Sender<Slot>)> {
        for batch in self.batches.values_mut() {
            batch.waiting.retain(|(_, waiting)| !waiting.is_closed());
        }
        self.batches.retain(|_, batch| batch.used > 0 || !batch.waiting.is_empty());
        let may_have =
            |batch: &Batch| if batch.used == 0 { self.free > 0 } else { self.free > self.reserved };
        let waiting = self.batches.iter().filter(|(_, batch)| may_have(batch));
        let first = |(id, batch): (&String, &Batch)| {
            batch.waiting.front().map(|(number, _)| (batch.used, *number, id.clone()))
        };
        let (_, _, id) = waiting.filter_map(first).min()?;
        let batch = self.batches.get_mut(&id)?;
        let (_, sender) = batch.waiting.pop_front()?;
        batch.used += 1;
        self.free -= 1;
        Some((id, sender))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.slots.0.lock();
            state.free += 1;
            if let Some(batch) = state.batches.get_mut(&self.batch) {
                batch.used = batch.used.saturating_sub(1);
            }
        }
        self.slots.grant();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn now(slots: &Slots, batch: &str) -> Option<Slot> {
        slots.acquire(batch).now_or_never()
    }

    #[test]
    fn a_batch_that_comes_later_has_a_slot_at_once_and_then_its_share() {
        let slots = Slots::new(16);
        let mut large: Vec<_> = std::iter::from_fn(|| now(&slots, "large")).collect();
        assert_eq!(large.len(), 14);
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(slots.acquire("large"))).collect();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let first = now(&slots, "small").expect("no slot was reserved");
        let mut second = Box::pin(slots.acquire("small"));
        assert!((&mut second).now_or_never().is_none());
        // One is reserved again; the next free one is for the batch that has fewer, though the other has requested before.
        drop(large.pop());
        assert!((&mut second).now_or_never().is_none());
        drop(large.pop());
        let second = second.now_or_never().expect("the large batch has it");
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        drop((first, second));
        // Held, or each would go to the next.
        let got: Vec<_> = waiting.iter_mut().filter_map(FutureExt::now_or_never).collect();
        assert_eq!(got.len(), 2, "those of the small batch");
    }

    #[test]
    fn a_request_that_is_dropped_takes_no_slot() {
        let slots = Slots::new(1);
        let first = now(&slots, "a").unwrap();
        let mut gone: Vec<_> = (0..1000).map(|_| Box::pin(slots.acquire("b"))).collect();
        assert!(gone.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let mut kept = Box::pin(slots.acquire("a"));
        assert!((&mut kept).now_or_never().is_none());
        gone.truncate(1);
        drop(first);
        // It was granted to the remaining one of b, which is not polled any more.
        assert!((&mut kept).now_or_never().is_none());
        drop(gone);
        drop(kept.now_or_never().expect("the slot is gone"));
        let state = slots.0.lock();
        assert_eq!((state.free, state.batches.len()), (1, 0));
    }
}

//! Reuse of buffers of large bodies: a new one costs the kernel a cleared page for every page of the body.

use std::sync::Arc;

use parking_lot::Mutex;

/// Smallest buffer that is pooled: the allocator itself keeps smaller ones. Also the step of sizes, so that frames of one
/// camera share buffers.
pub(super) const MIN_LEN: usize = 128 << 10;
/// Most bytes of all spare buffers together.
const MAX_SPARE: usize = 4 << 20;

/// The spare buffers.
#[derive(Debug, Default)]
pub(super) struct BufferPool {
    spare: Mutex<Spare>,
}

#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer that returns to its pool when dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// The capacity of a buffer for `room` bytes.
    pub(super) fn size_for(room: usize) -> usize {
        if room < MIN_LEN { room } else { room.checked_next_multiple_of(MIN_LEN).unwrap_or(room) }
    }

    /// An empty buffer of [`BufferPool::size_for`] `room` bytes, or a spare one of at most twice as many.
    pub(super) fn take(self: &Arc<Self>, room: usize) -> Buffer {
        let spare = if room < MIN_LEN { None } else { self.spare.lock().take(room) };
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(Self::size_for(room)));
        Buffer { bytes, pool: Arc::clone(self) }
    }
}

impl Spare {
    /// The smallest that is large enough, but at most twice as large, so that a small body holds little memory.
    fn take(&mut self, room: usize) -> Option<Vec<u8>> {
        let fits = |buffer: &Vec<u8>| (room..=room.saturating_mul(2)).contains(&buffer.capacity());
        let all = self.buffers.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        let (at, _) = all.min_by_key(|(_, buffer)| buffer.capacity())?;
        let buffer = self.buffers.swap_remove(at);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Grows the capacity to `room` bytes, exactly.
    pub(super) fn grow_to(&mut self, room: usize) {
        self.bytes.reserve_exact(room.saturating_sub(self.bytes.len()));
    }

    pub(super) fn extend(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.bytes);
        if buffer.capacity() < MIN_LEN {
            return;
        }
        let mut spare = self.pool.spare.lock();
        if spare.bytes + buffer.capacity() <= MAX_SPARE {
            buffer.clear();
            spare.bytes += buffer.capacity();
            spare.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare(buffers: &BufferPool) -> (usize, usize) {
        let spare = buffers.spare.lock();
        (spare.buffers.len(), spare.bytes)
    }

    #[test]
    fn a_large_buffer_is_used_again_when_nobody_holds_its_bytes() {
        let buffers = Arc::new(BufferPool::default());
        let mut first = buffers.take(MIN_LEN);
        first.extend(&[7; MIN_LEN]);
        let address = first.as_ref().as_ptr();
        let bytes = bytes::Bytes::from_owner(first);
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(spare(&buffers).0, 0);
        assert_eq!(slice[..], [7; 10]);
        drop(slice);
        assert_eq!(spare(&buffers), (1, MIN_LEN));
        let mut second = buffers.take(MIN_LEN - 1);
        assert_eq!(spare(&buffers).0, 1, "too small to be kept, so not taken from those");
        second.extend(&[1]);
        let third = buffers.take(MIN_LEN);
        assert_eq!((third.as_ref().as_ptr(), third.len()), (address, 0));
    }

    #[test]
    fn a_small_body_gets_no_giants_buffer_and_the_spare_ones_are_bounded() {
        let buffers = Arc::new(BufferPool::default());
        drop(buffers.take(5 * MIN_LEN));
        assert_eq!(buffers.take(MIN_LEN).bytes.capacity(), MIN_LEN);
        let all: Vec<_> = (0..10).map(|_| buffers.take(1 << 20)).collect();
        drop(all);
        assert!(spare(&buffers).1 <= MAX_SPARE, "{:?}", spare(&buffers));
        drop(buffers.take(MAX_SPARE + 1));
        assert!(spare(&buffers).1 <= MAX_SPARE);
    }
}

//! A byte buffer that is kept from image to image.

/// What is kept at most. A camera frame, decoded at the scale that its preprocessing needs, stays far below
/// (1080p full size is 6 MiB); the memory of a larger image goes back with the next one, or with [`Buffer::trim`].
const KEEP: usize = 8 << 20;

/// Grows to the largest image seen, and gives memory beyond [`KEEP`] back as soon as it is not needed.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// `len` bytes to write to. What they hold is left over from earlier images.
    pub(super) fn take(&mut self, len: usize) -> &mut [u8] {
        if self.0.capacity() > KEEP.max(len) {
            self.0 = Vec::new();
        }
        if self.0.len() < len {
            // Nothing of the old content is needed: a fresh zeroed block is cheaper than a copied one.
            if self.0.capacity() < len {
                self.0 = Vec::new();
                self.0 = vec![0; len];
            } else {
                self.0.resize(len, 0);
            }
        }
        &mut self.0[..len]
    }

    /// The first `len` of the bytes that were taken last.
    pub(super) fn front(&self, len: usize) -> &[u8] {
        &self.0[..len.min(self.0.len())]
    }

    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Gives back what is beyond [`KEEP`].
    pub(super) fn trim(&mut self) {
        if self.0.capacity() > KEEP {
            self.0 = Vec::new();
        }
    }
}

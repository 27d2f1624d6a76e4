//! A byte buffer that is kept from image to image.

/// What is kept at most. A camera frame, decoded at the scale that its preprocessing needs, stays far below
/// (4K full size is 24 MiB); after a rare giant the memory goes back with the next image.
const KEEP: usize = 32 << 20;

/// Grows to the largest image seen, and gives memory beyond [`KEEP`] back as soon as it is not needed.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// `len` bytes to write to. What they hold is left over from earlier images.
    pub(super) fn take(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() > KEEP.max(len) {
            self.0.truncate(KEEP.max(len));
            self.0.shrink_to_fit();
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

    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

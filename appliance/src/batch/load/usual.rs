//! How large images usually are: the room that is taken for one before its length is known.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What is taken for usual before anything is known.
const FIRST: usize = 1 << 20;
/// Less than this is not worth being exact about.
const MIN_SIZE: usize = 64 << 10;

/// Follows the largest of the images that were seen lately.
#[derive(Debug)]
pub(super) struct Usual(AtomicUsize);

impl Default for Usual {
    fn default() -> Self {
        Self(AtomicUsize::new(FIRST))
    }
}

impl Usual {
    /// Bytes that will do for most images.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes how large an image was. A large one counts at once and is forgotten slowly: to ask for too little costs
    /// another request, to ask for too much only room for a while.
    pub(super) fn note(&self, bytes: usize) {
        let with_margin = bytes.saturating_add(bytes / 4).max(MIN_SIZE);
        let follow = |usual: usize| Some(with_margin.max(usual - usual / 64));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, follow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_up_at_once_and_down_slowly() {
        let usual = Usual::default();
        usual.note(4 << 20);
        assert_eq!(usual.bytes(), 5 << 20);
        usual.note(100_000);
        assert!(usual.bytes() > 4 << 20);
        (0..1000).for_each(|_| usual.note(100_000));
        assert_eq!(usual.bytes(), 125_000);
        (0..1000).for_each(|_| usual.note(0));
        assert_eq!(usual.bytes(), MIN_SIZE);
    }
}

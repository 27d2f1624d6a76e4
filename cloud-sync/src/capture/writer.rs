//! The one thread that puts captured images into the spool.

use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::item::{Captured, Sidecar};
use super::spool::Spool;
use super::stats::Counters;

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) node: String,
    pub(super) spool: Arc<Spool>,
    pub(super) counters: Arc<Counters>,
    /// The last write worked: the first failure after it is worth a line.
    pub(super) well: bool,
}

impl Writer {
    /// Until the last sender is gone and nothing waits.
    pub(super) fn run(mut self, waiting: &Receiver<Captured>) {
        for image in waiting {
            let bytes = image.bytes.len() as u64;
            self.take(&image);
            // Only now: until it is in the spool it is counted as waiting, so it is never counted as neither.
            self.counters.release(bytes);
        }
    }

    fn take(&mut self, image: &Captured) {
        match self.spool.write(&Sidecar::new(image, &self.node), &image.bytes) {
            Ok(true) => self.well = true,
            Ok(false) => self.counters.deduplicate(),
            Err(error) => {
                let error = format!("cannot keep a captured image: {error}");
                if std::mem::replace(&mut self.well, false) {
                    tracing::warn!(error, "captured images are left out");
                }
                self.counters.fail(error);
                // Last: who sees the count finds the error too.
                self.counters.skip();
            }
        }
    }
}

//! The files of a multipart batch after its end.

use super::Worker;
use crate::batch::message::BatchMessage;
use crate::batch::{gc, object_keys};

impl Worker {
    /// Removes the files of a batch that is finished and settled, where the store is this box's own disk. Not before:
    /// a message that comes again may need them.
    pub(super) async fn remove_files(&self, message: &BatchMessage) {
        if !self.settings.remove_files || !message.names_files() {
            return;
        }
        let id = &message.spec.request_id;
        if let Err(error) = gc::remove_all(self.blob.as_ref(), &object_keys::files_prefix(id)).await {
            // They go with the results.
            tracing::warn!(batch = id, error = error.in_full(), "files of a finished batch were not removed");
        }
    }
}

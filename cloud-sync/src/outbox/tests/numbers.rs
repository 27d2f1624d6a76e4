//! The last sequences that there are.

use tempfile::tempdir;

use crate::outbox::cursor::Cursor;
use crate::outbox::{Outbox, OutboxConfig, OutboxError};

#[test]
fn an_append_for_which_there_is_no_number_is_refused() {
    let dir = tempdir().unwrap();
    Cursor::load(dir.path()).unwrap().0.store(u64::MAX - 2).unwrap();
    for appended in [1, 0] {
        let outbox = Outbox::open(OutboxConfig::new(dir.path())).unwrap().0;
        for _ in 0..appended {
            assert_eq!(outbox.append(b"{}".to_vec()).wait().unwrap(), u64::MAX - 1);
        }
        for _ in 0..2 {
            let error = outbox.append(b"{}".to_vec()).wait().unwrap_err();
            assert!(matches!(error, OutboxError::Exhausted { .. }), "{error}");
        }
        outbox.close().unwrap();
    }
}

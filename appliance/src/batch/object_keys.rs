//! The keys of a batch's objects in the blob store, and which ids a batch may have.
//!
//! | key | what |
//! |---|---|
//! | `batches/<id>/batch.json` | the durable record of what was submitted |
//! | `batches/<id>/cancelled.json` | that the batch was cancelled, and when |
//! | `batches/<id>/files/<index>` | an image that was posted as a file; on a box's own disk until the batch is finished |
//! | `batches/<id>/parts/<chunk>.jsonl` | results of one chunk, until the batch is finished |
//! | `results/<id>.jsonl` | the results, one line per image, in the order of the images |
//! | `dead-letter/parts/<id>-<chunk>.jsonl` | results of a chunk that were damaged |
//! | `dead-letter/<day>/<position>.json` | a message or images that could not be processed, and why |

use cloud_sync::blob::{BlobKey, InvalidKey};

/// The first parts of the keys of the table.
pub const FOLDERS: [&str; 3] = ["batches", "results", "dead-letter"];

/// Longest id of a batch, in bytes; a synthetic one has one more.
pub const MAX_ID_BYTES: usize = 128;

/// First character of a synthetic id, one made of the position of a message: no client can choose such an id, and so none
/// can take the id of a message that is yet to come.
const SYNTHETIC: char = '~';

/// An id that no batch can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "request_id = {id:?} is not 1 to {MAX_ID_BYTES} letters, digits, '_', '.' or '-' that do not begin with '.'"
)]
pub struct InvalidId {
    id: String,
}

/// Whether a batch can have this id: it is a part of object keys, of URLs and of Redis keys.
///
/// # Errors
/// [`InvalidId`], with the beginning of what was given.
pub fn check_id(id: &str) -> Result<(), InvalidId> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(allowed) && !id.starts_with('.') {
        return Ok(());
    }
    Err(InvalidId { id: id.chars().take(MAX_ID_BYTES).collect() })
}

/// Whether there can be a batch of this id: one that a client may choose, or a synthetic one.
///
/// # Errors
/// As for [`check_id`].
pub fn check_any_id(id: &str) -> Result<(), InvalidId> {
    check_id(id.strip_prefix(SYNTHETIC).unwrap_or(id))
}

/// The id of a batch whose message, at `position` in the queue, names none. A position that can't be part of an id is
/// replaced by its digest.
#[must_use]
pub fn synthetic_id(position: &str) -> String {
    match check_id(position) {
        Ok(()) => format!("{SYNTHETIC}{position}"),
        Err(_) => format!("{SYNTHETIC}message-{}", &blake3::hash(position.as_bytes()).to_hex()[..32]),
    }
}

/// Whether an id is made of the position of a message: then only that message can have it.
#[must_use]
pub fn is_synthetic(id: &str) -> bool {
    id.starts_with(SYNTHETIC)
}

/// The durable record of a batch.
///
/// # Errors
/// When `id` is none that [`check_any_id`] takes; so for every function here.
pub fn batch_key(id: &str) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("batches/{id}/batch.json"))
}

/// The mark of a cancelled batch, which remains when the state store has lost or forgotten it.
///
/// # Errors
/// As for [`batch_key`].
pub fn cancelled_key(id: &str) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("batches/{id}/cancelled.json"))
}

/// Prefix of the keys of all objects of a batch but its results.
#[must_use]
pub fn batch_prefix(id: &str) -> String {
    format!("batches/{id}/")
}

/// The posted file that is the image at `index`.
///
/// # Errors
/// As for [`batch_key`].
pub fn file_key(id: &str, index: u64) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("batches/{id}/files/{index:08}"))
}

/// Prefix of the keys of a batch's posted files.
#[must_use]
pub fn files_prefix(id: &str) -> String {
    format!("batches/{id}/files/")
}

/// The results of one chunk.
///
/// # Errors
/// As for [`batch_key`].
pub fn part_key(id: &str, chunk: u32) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("batches/{id}/parts/{chunk:06}.jsonl"))
}

/// Prefix of the keys of a batch's parts.
#[must_use]
pub fn parts_prefix(id: &str) -> String {
    format!("batches/{id}/parts/")
}

/// The results of a batch.
///
/// # Errors
/// As for [`batch_key`].
pub fn results_key(id: &str) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("results/{id}.jsonl"))
}

/// Damaged results of a chunk.
///
/// # Errors
/// Never for an id that was checked.
pub fn damaged_part_key(id: &str, chunk: u32) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("dead-letter/parts/{id}-{chunk:06}.jsonl"))
}

/// The dead letter of the delivery at `position`; `day` is `yyyy-mm-dd`.
///
/// # Errors
/// When `day` or `position` has what a key must not.
pub fn dead_letter_key(day: &str, position: &str) -> Result<BlobKey, InvalidKey> {
    BlobKey::new(format!("dead-letter/{day}/{position}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_names() {
        let long = "a".repeat(128);
        for id in ["1", "01JD", "day-3_v1.2", "a..b", "-", long.as_str()] {
            assert_eq!(check_id(id), Ok(()), "{id}");
            assert!(batch_key(id).is_ok() && file_key(id, 0).is_ok() && part_key(id, 0).is_ok(), "{id}");
            assert!(results_key(id).is_ok(), "{id}");
        }
        let longer = "a".repeat(129);
        for id in
            ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "ä", "a%2e", "a:b", "~a", "a~b", longer.as_str()]
        {
            let error = check_id(id).unwrap_err().to_string();
            assert!(error.contains("request_id") && error.contains("128"), "{error}");
        }
    }

    #[test]
    fn every_key_is_in_one_of_the_folders() {
        let keys = [
            batch_key("b").unwrap(),
            cancelled_key("b").unwrap(),
            file_key("b", 0).unwrap(),
            part_key("b", 0).unwrap(),
            results_key("b").unwrap(),
            dead_letter_key("2026-01-31", "p").unwrap(),
        ];
        for key in keys {
            assert!(FOLDERS.contains(&key.as_str().split('/').next().unwrap()), "{key}");
        }
    }

    #[test]
    fn the_place_of_a_message_is_an_id_that_no_client_can_choose() {
        let long = "t".repeat(200);
        for place in ["requests-0-17", "queue-01JD-3", ".hidden-0-1", "a/b", long.as_str()] {
            let id = synthetic_id(place);
            assert!(is_synthetic(&id) && check_any_id(&id).is_ok() && check_id(&id).is_err(), "{id}");
            assert!(results_key(&id).is_ok() && part_key(&id, 0).is_ok(), "{id}");
            assert_eq!(id, synthetic_id(place));
        }
        assert_eq!(synthetic_id("requests-0-17"), "~requests-0-17");
        assert_ne!(synthetic_id(".hidden-0-1"), synthetic_id(".hidden-0-2"));
        assert!(check_any_id("mine").is_ok() && !is_synthetic("mine"));
        for id in ["~", "~~a", "~.a", "~a/b", "b~summary"] {
            assert!(check_any_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn keys_sort_as_their_numbers_do() {
        assert_eq!(file_key("b", 7).unwrap().as_str(), "batches/b/files/00000007");
        assert!(file_key("b", 99).unwrap() < file_key("b", 100).unwrap());
        assert_eq!(part_key("b", 12).unwrap().as_str(), "batches/b/parts/000012.jsonl");
        assert!(part_key("b", 12).unwrap().as_str().starts_with(&parts_prefix("b")));
        assert_eq!(
            dead_letter_key("2026-01-31", "requests-0-17").unwrap().as_str(),
            "dead-letter/2026-01-31/requests-0-17.json"
        );
    }
}

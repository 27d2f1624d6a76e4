//! Bodies of batches: refused with a reason, or a list of images within every limit, equal to that of a reference JSON parser; no file is
//! left behind.
//!
//! An input is a Content-Type (JSON where it is empty), a newline and a body.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use weir::batch::object_keys::check_id;
use weir::batch::parsing::{BatchOptions, Images, Intake, IntakeBounds, IntakeError, read};
use weir::batch::spool::Spool;

use crate::harness::{measured, temp_folder};

const BOUNDS: IntakeBounds = IntakeBounds { max_images: 40, max_file: 1000, labels: 17 };
/// Longest URL.
const MAX_URL: usize = 4096;
/// Buffers; a body is never in memory as a whole.
const MEMORY: u64 = 1 << 20;
/// The reason is sent to the client and names an unknown field.
const MAX_REASON: usize = 32 << 10;

struct World {
    runtime: Runtime,
    folder: TempDir,
    spool: Spool,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new({
        let folder = temp_folder();
        let spool = Spool::open(folder.path().to_owned()).expect("a spool");
        World { runtime: Builder::new_current_thread().build().expect("a runtime"), folder, spool }
    });
}

/// Checks the property.
pub fn check(input: &[u8]) {
    let at = memchr::memchr(b'\n', input).unwrap_or(input.len());
    let Ok(content_type) = std::str::from_utf8(&input[..at]) else { return };
    let content_type = if content_type.is_empty() { "application/json" } else { content_type };
    let body = input.get(at + 1..).unwrap_or_default();
    WORLD.with_borrow(|world| {
        let (mut file, path) = world.spool.create().expect("a file").into_parts();
        file.write_all(body).expect("a body on disk");
        let (taken, cost) = measured(|| {
            let reading = read(path, content_type, BatchOptions::default(), &world.spool, BOUNDS);
            world.runtime.block_on(reading)
        });
        assert!(cost.bytes <= MEMORY, "{} bytes of memory for a body of {}", cost.bytes, body.len());
        judge(taken, body);
        assert_eq!(files_in(world.folder.path()), 0, "files are left behind");
    });
}

fn files_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("the spool").count()
}

fn judge(taken: Result<Intake, IntakeError>, body: &[u8]) {
    let intake = match taken {
        Ok(intake) => intake,
        Err(IntakeError::Spool(error)) => panic!("{error}"),
        Err(error) => {
            let reason = error.to_string();
            return assert!((1..=MAX_REASON).contains(&reason.len()), "a reason of {} bytes", reason.len());
        }
    };
    assert!((1..=BOUNDS.max_images).contains(&intake.total), "{} images", intake.total);
    assert_eq!(intake.digest.len(), 64);
    let BatchOptions { request_id, camera, top_k } = &intake.options;
    assert!(request_id.as_ref().is_none_or(|id| check_id(id).is_ok()), "{request_id:?}");
    assert!(top_k.is_none_or(|k| (1..=BOUNDS.labels).contains(&k)), "{top_k:?}");
    assert!(camera.as_ref().is_none_or(|name| !name.is_empty() && !name.chars().any(char::is_control)));
    let Images::Urls(list) = &intake.images else { return };
    let mut reader = list.drain().expect("a list");
    let urls: Vec<_> = (0..intake.total).map(|_| reader.next_url().expect("a URL")).collect();
    assert!(urls.iter().all(|url| (1..=MAX_URL).contains(&url.len())));
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let seen: Value = serde_json::from_slice(text).expect("JSON of what was taken as JSON");
    assert_eq!(seen["image_urls"], serde_json::json!(urls), "other images than were sent");
}

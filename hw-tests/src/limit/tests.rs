//! The limit loop on the default bundle and the real runtime.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::frames::Size;

fn engine() -> Engine {
    Engine::load(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1"))).unwrap()
}

fn plan(threads: usize) -> Plan {
    Plan { threads, warmup: Duration::from_millis(50), duration: Duration::from_secs(2) }
}

#[test]
fn stages_and_cpu_time_add_up() {
    let frames = frames::render(Size::Vga, 3).unwrap();
    let limit = engine().measure(&frames, &plan(1)).unwrap();
    assert!(limit.images >= 3, "{limit:?}");
    let stages = limit.decode_ms + limit.preprocess_ms + limit.infer_ms;
    // One thread: the stages cannot take more than the time between two images.
    assert!(limit.decode_ms > 0.0 && limit.preprocess_ms > 0.0 && limit.infer_ms > 0.0);
    assert!(stages <= 1000.0 / limit.images_per_s * 1.05, "{limit:?}");
    assert!(limit.cpu_ms > 0.0);
}

#[test]
fn an_image_that_cannot_be_classified_is_named() {
    let mut frames = frames::render(Size::Vga, 2).unwrap();
    frames[1].bytes.truncate(300);
    let error = engine().measure(&frames, &plan(2)).unwrap_err();
    assert!(format!("{error:#}").contains("vga-001.jpg"), "{error:#}");
}

#[test]
fn no_images_is_an_error() {
    assert!(engine().measure(&[], &plan(1)).is_err());
}

#[test]
fn a_bundle_that_is_not_there_is_named() {
    let error = Engine::load(Some(Path::new("/no/such/bundle"))).err().unwrap();
    assert!(format!("{error:#}").contains("/no/such/bundle"), "{error:#}");
}

//! The labelled photos that WEIR_PHOTOS names, where they are at hand.

use std::path::PathBuf;

use crate::draw::{decoder, window};

#[test]
fn every_labelled_photo_decodes() {
    let Some(folder) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        eprintln!("WEIR_PHOTOS is not set: no photo was decoded");
        return;
    };
    let mut decoder = decoder();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let image = decoder.decode(&bytes, 256).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(image.width.min(image.height) >= image.original_width.min(image.original_height).min(256));
        let values = window(&image, 256, 224);
        let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        assert!(high - low > 50.0, "{}: hardly any contrast", path.display());
        count += 1;
    }
    assert_eq!(count, 40);
}

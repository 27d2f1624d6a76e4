//! Frames: realistic sizes, reproducible, rendered quickly; tags do not change the pixels.

use std::time::{Duration, Instant};

use super::*;

fn decode(bytes: &[u8]) -> turbojpeg::Image<Vec<u8>> {
    turbojpeg::decompress(bytes, turbojpeg::PixelFormat::RGB).unwrap()
}

#[test]
fn frames_have_the_sizes_of_real_cameras() {
    for size in Size::ALL {
        for frame in render(size, 4).unwrap() {
            let ratio = frame.bytes.len() as f64 / size.typical_bytes() as f64;
            assert!((0.85..1.15).contains(&ratio), "{} has {} bytes", frame.name, frame.bytes.len());
            let header = turbojpeg::read_header(&frame.bytes).unwrap();
            assert_eq!((header.width, header.height), size.pixels());
            assert_eq!(header.subsamp, turbojpeg::Subsamp::Sub2x2);
            assert!(!header.is_progressive);
        }
    }
}

#[test]
fn the_same_number_gives_the_same_frame_and_another_number_another() {
    let first = render(Size::Vga, 2).unwrap();
    let again = render(Size::Vga, 2).unwrap();
    assert_eq!(first[0].bytes, again[0].bytes);
    assert_ne!(first[0].bytes, first[1].bytes);
}

#[test]
fn a_scene_is_neither_flat_nor_blown_out() {
    let image = decode(&render(Size::Vga, 1).unwrap()[0].bytes);
    let mean = |rows: &[u8]| rows.iter().map(|level| f64::from(*level)).sum::<f64>() / rows.len() as f64;
    let tenth = image.pixels.len() / 10;
    let (top, bottom) = (mean(&image.pixels[..tenth]), mean(&image.pixels[9 * tenth..]));
    assert!(top > bottom + 30.0, "light comes from above: {top} over {bottom}");
    let white = image.pixels.iter().filter(|level| **level == 255).count();
    assert!(white * 20 < image.pixels.len(), "{white} of {} samples are white", image.pixels.len());
}

#[test]
fn a_4k_frame_is_rendered_in_bounded_time() {
    let start = Instant::now();
    render(Size::Uhd, 1).unwrap();
    // A release build takes less than a second; the test profile is hardly optimised and the machine may be busy.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn a_tag_changes_the_bytes_and_not_the_pixels() {
    let frame = &render(Size::Vga, 1).unwrap()[0].bytes;
    let one = with_tag(frame, 7, 1).unwrap();
    let two = with_tag(frame, 7, 2).unwrap();
    let other_run = with_tag(frame, 8, 1).unwrap();
    assert_eq!(one.len(), frame.len() + TAG_LEN);
    assert!(one != two && one != other_run);
    let pixels = decode(frame).pixels;
    assert_eq!(decode(&one).pixels, pixels);
    assert_eq!(decode(&two).pixels, pixels);
}

#[test]
fn a_tag_contains_run_and_counter_in_hexadecimal() {
    let segment = tag_segment(0x0123_4567_89ab_cdef, 0xfe);
    assert_eq!(&segment[..4], &[0xff, 0xfe, 0, 34]);
    assert_eq!(&segment[4..], b"0123456789abcdef00000000000000fe");
}

#[test]
fn only_a_jpeg_can_be_tagged() {
    assert_eq!(with_tag(b"\x89PNG\r\n", 0, 0), Err(TagError::NotJpeg));
    assert_eq!(with_tag(b"\xff", 0, 0), Err(TagError::NotJpeg));
}

#[test]
fn a_folder_without_pictures_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "no picture").unwrap();
    let error = read_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds no picture") && error.contains(dir.path().to_str().unwrap()), "{error}");
}

#[test]
fn a_folder_is_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b.jpg", "a.JPG", "c.png"] {
        std::fs::write(dir.path().join(name), name).unwrap();
    }
    let names: Vec<_> = read_dir(dir.path()).unwrap().into_iter().map(|frame| frame.name).collect();
    assert_eq!(names, ["a.JPG", "b.jpg", "c.png"]);
}

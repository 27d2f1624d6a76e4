//! Every supported kind of JPEG, its scales and its orientation.

use gpu_kernels::{DecodeLimits, Orientation, inspect};
use turbojpeg::{PixelFormat, Subsamp};

use crate::draw::{Jpeg, Picture, code_of, decode, decoder, smooth};
use crate::write::{exif, with_exif, with_segment};

#[test]
fn every_coding_and_subsampling_comes_back_close_to_what_was_drawn() {
    let drawn = smooth(101, 67);
    let close = |jpeg: Jpeg| {
        let distance = decode(&jpeg.encode(&drawn)).unwrap().distance(&drawn);
        assert!(distance <= if jpeg.lossless { 0 } else { 9 }, "{jpeg:?}: off by {distance}");
    };
    for subsampling in [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub1x2, Subsamp::Sub2x2, Subsamp::Sub4x1] {
        close(Jpeg { subsampling, ..Jpeg::default() });
        close(Jpeg { subsampling, progressive: true, ..Jpeg::default() });
    }
    close(Jpeg { arithmetic: true, ..Jpeg::default() });
    close(Jpeg { arithmetic: true, progressive: true, ..Jpeg::default() });
    close(Jpeg { lossless: true, subsampling: Subsamp::None, ..Jpeg::default() });
}

#[test]
fn grey_becomes_three_equal_channels() {
    let grey: Vec<u8> = (0..64 * 64).map(|at| (at % 64 * 4) as u8).collect();
    let bytes =
        Jpeg { subsampling: Subsamp::Gray, ..Jpeg::default() }.encode_as(64, 64, &grey, PixelFormat::GRAY);
    let decoded = decode(&bytes).unwrap();
    for (pixel, &level) in decoded.pixels.as_chunks::<3>().0.iter().zip(&grey) {
        assert!(pixel[0] == pixel[1] && pixel[1] == pixel[2] && pixel[0].abs_diff(level) < 6);
    }
}

#[test]
fn cmyk_is_multiplied_out_as_adobe_inverts_it() {
    // Inverted, as Adobe stores it: 255 is no ink. So the colour is C, M, Y times K.
    let drawn = smooth(64, 48);
    let cmyk: Vec<u8> =
        drawn.pixels.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, 204]).collect();
    let bytes = Jpeg { quality: 98, subsampling: Subsamp::None, ..Jpeg::default() }.encode_as(
        64,
        48,
        &cmyk,
        PixelFormat::CMYK,
    );
    let expected =
        Picture { pixels: drawn.pixels.iter().map(|&v| (u32::from(v) * 204 / 255) as u8).collect(), ..drawn };
    assert!(decode(&bytes).unwrap().distance(&expected) <= 5);
}

#[test]
fn the_scale_is_the_smallest_of_the_fast_ones_that_keeps_the_shorter_side() {
    let mut decoder = decoder();
    for (width, height, shorter_side, expected) in [
        (640, 480, 256, (640, 480)),
        (1920, 1080, 256, (480, 270)),
        (3840, 2160, 256, (480, 270)),
        (1024, 513, 256, (512, 257)),
        (1024, 512, 256, (512, 256)),
        (1024, 511, 256, (512, 256)), // 255.5 is rounded up
        (1024, 510, 256, (1024, 510)),
        (2041, 2050, 256, (256, 257)),
        (100, 50, 256, (100, 50)),
        (100, 50, 1, (13, 7)),
        (9, 9, 0, (2, 2)),
        (640, 480, u32::MAX, (640, 480)),
    ] {
        let bytes = Jpeg { quality: 30, ..Jpeg::default() }.encode(&smooth(width, height));
        let image = decoder.decode(&bytes, shorter_side).unwrap();
        assert_eq!((image.width, image.height), expected, "{width} x {height} at {shorter_side}");
        assert_eq!((image.original_width, image.original_height), (width, height));
        assert_eq!(image.pixels.len(), 3 * image.width as usize * image.height as usize);
    }
}

#[test]
fn a_smaller_scale_shows_the_same_picture() {
    let drawn = smooth(400, 320);
    let bytes = Jpeg::default().encode(&drawn);
    let mut decoder = decoder();
    let small = Picture::of(&decoder.decode(&bytes, 40).unwrap());
    assert_eq!((small.width, small.height), (50, 40));
    assert!(small.distance(&smooth(50, 40)) <= 9);
    let lossless = Jpeg { lossless: true, subsampling: Subsamp::None, ..Jpeg::default() }.encode(&drawn);
    assert_eq!(Picture::of(&decoder.decode(&lossless, 40).unwrap()), drawn);
}

#[test]
fn the_exif_orientation_is_read_and_not_applied() {
    let drawn = smooth(48, 32);
    let bytes = Jpeg::default().encode(&drawn);
    let plain = decode(&bytes).unwrap();
    for orientation in Orientation::ALL {
        for big_endian in [true, false] {
            let turned = with_exif(&bytes, &exif(orientation.exif(), big_endian));
            let header = inspect(&turned, &DecodeLimits::default()).unwrap();
            assert_eq!(header.orientation, orientation);
            assert_eq!(decode(&turned).unwrap(), Picture { orientation, ..plain.clone() });
        }
    }
}

#[test]
fn a_broken_exif_is_ignored() {
    let bytes = Jpeg::default().encode(&smooth(48, 32));
    let sound = exif(6, false);
    let mut far = sound.clone();
    far[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut many = sound.clone();
    many[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
    many[10] = 0;
    for block in [
        &[][..],
        b"II*",
        &sound[..15],
        &far,
        &many,
        &exif(0, false),
        &exif(9, true),
        b"rubbish that is no TIFF",
    ] {
        let header = inspect(&with_exif(&bytes, block), &DecodeLimits::default()).unwrap();
        assert_eq!(header.orientation, Orientation::Upright, "{block:?}");
    }
    // XMP uses the same kind of segment; the EXIF after it is read.
    let both = with_segment(&with_exif(&bytes, &sound), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>");
    assert_eq!(inspect(&both, &DecodeLimits::default()).unwrap().orientation, Orientation::Rotate90);
}

#[test]
fn kinds_that_are_not_read_are_refused_by_name() {
    let sound = Jpeg::default().encode(&smooth(48, 32));
    let frame = sound.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    let patched = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[frame + at] = value;
        bytes
    };
    for (bytes, detail) in [
        (patched(1, 0xC5), "hierarchical JPEG"),
        (patched(1, 0xCB), "lossless JPEG with arithmetic coding"),
        (patched(4, 12), "12 bits per sample; send 8"),
        (patched(9, 2), "2 colour components; send 1 (grey), 3 (colour) or 4 (CMYK)"),
    ] {
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("unsupported jpeg image: {detail}"));
        assert_eq!(code_of(inspect(&bytes, &DecodeLimits::default())), "unsupported_image");
    }
}

//! Which JPEGs nvJPEG may decode, their planes, and which parts of a JPEG must be present and valid.

use gpu_kernels::decode::nvjpeg::{Eligible, EntropyCheck, Ineligible, JpegPlanes, NvJpegBackend, eligible};
use gpu_kernels::preprocess::PixelLayout;
use gpu_kernels::{DecodeLimits, Decoder};
use turbojpeg::{Colorspace, Subsamp};

use crate::drawn::{
    GREY, Kind, PLAIN, PROGRESSIVE, SUBSAMPLINGS, in_scans, position, spliced, with_restarts, without_jfif,
};

const BACKENDS: [NvJpegBackend; 2] = [NvJpegBackend::Hardware, NvJpegBackend::Cuda];

pub(crate) fn asked(bytes: &[u8], backend: NvJpegBackend) -> Result<Eligible, Ineligible> {
    eligible(bytes, backend, &DecodeLimits::default())
}

pub(crate) fn on_cuda(bytes: &[u8]) -> Result<Eligible, Ineligible> {
    asked(bytes, NvJpegBackend::Cuda)
}

pub(crate) fn reason(bytes: &[u8]) -> Ineligible {
    on_cuda(bytes).unwrap_err()
}

#[test]
fn baseline_of_every_usual_subsampling_is_eligible() {
    let mut entropy = EntropyCheck::default();
    for (subsampling, (shift_x, shift_y)) in SUBSAMPLINGS {
        for optimised in [false, true] {
            for (width, height) in [(101, 67), (1, 1), (16, 16), (17, 2)] {
                let bytes = Kind { subsampling, optimised, ..PLAIN }.draw(width, height);
                let (width, height) = (width as u32, height as u32);
                let expected = JpegPlanes { width, height, components: 3, shift_x, shift_y };
                for backend in BACKENDS {
                    let found = asked(&bytes, backend).unwrap();
                    assert_eq!((found.planes, found.length), (expected, bytes.len()), "{subsampling:?}");
                }
                assert_eq!(entropy.check(&bytes), Ok(()), "{subsampling:?}, {width} x {height}");
            }
        }
    }
    let grey = GREY.draw(31, 9);
    let expected = JpegPlanes { width: 31, height: 9, components: 1, shift_x: 0, shift_y: 0 };
    assert_eq!(asked(&grey, NvJpegBackend::Hardware).unwrap().planes, expected);
    assert_eq!(entropy.check(&grey), Ok(()));
    assert!(entropy.retained_bytes() > 0);
}

#[test]
fn progressive_is_for_cuda_alone_and_its_codes_are_not_followed() {
    for kind in
        [PROGRESSIVE, Kind { subsampling: Subsamp::None, ..PROGRESSIVE }, Kind { progressive: true, ..GREY }]
    {
        let bytes = kind.draw(64, 48);
        assert_eq!(asked(&bytes, NvJpegBackend::Hardware), Err(Ineligible::Coding));
        assert_eq!(on_cuda(&bytes).unwrap().length, bytes.len());
        assert_eq!(EntropyCheck::default().check(&bytes), Err(Ineligible::Entropy));
        // Without its last scan, but closed.
        let scans = bytes.windows(2).filter(|pair| *pair == [0xFF, 0xDA]).count();
        let cut = [&bytes[..position(&bytes, 0xDA, scans - 1)], &[0xFF, 0xD9]].concat();
        assert_eq!(reason(&cut), Ineligible::Incomplete);
    }
}

#[test]
fn other_codings_subsamplings_and_colours_are_not() {
    let lossless = Kind { lossless: true, subsampling: Subsamp::None, ..PLAIN };
    for kind in [Kind { arithmetic: true, ..PLAIN }, Kind { arithmetic: true, ..PROGRESSIVE }, lossless] {
        assert_eq!(reason(&kind.draw(40, 30)), Ineligible::Coding, "{kind:?}");
    }
    for subsampling in [Subsamp::Sub4x1, Subsamp::Sub1x4] {
        assert_eq!(reason(&Kind { subsampling, ..PLAIN }.draw(40, 30)), Ineligible::Sampling);
    }
    for colours in [Colorspace::RGB, Colorspace::CMYK, Colorspace::YCCK] {
        let kind = Kind { colours, subsampling: Subsamp::None, ..PLAIN };
        assert_eq!(reason(&kind.draw(40, 30)), Ineligible::Colour, "{colours:?}");
    }
    // Extended sequential coding, which is otherwise identical to baseline.
    let mut extended = PLAIN.draw(40, 30);
    let frame = position(&extended, 0xC0, 0);
    extended[frame + 1] = 0xC1;
    assert_eq!(asked(&extended, NvJpegBackend::Hardware), Err(Ineligible::Coding));
    assert!(on_cuda(&extended).is_ok());
}

#[test]
fn colours_are_told_as_libjpeg_tells_them_and_left_to_it_where_markers_disagree() {
    let jfif = Kind { subsampling: Subsamp::None, ..PLAIN }.draw(24, 24);
    let adobe = |transform| [b"Adobe\0\x64\0\0\0\0", &[transform][..]].concat();
    assert!(on_cuda(&without_jfif(&jfif, 0xEE, &adobe(1))).is_ok());
    let other = [
        without_jfif(&jfif, 0xEE, &adobe(0)),
        without_jfif(&jfif, 0xEE, &adobe(2)),
        without_jfif(&jfif, 0xEE, b"Adobe\0"),
        // libjpeg believes JFIF; another decoder may not.
        spliced(&jfif, 20, &[&[0xFF, 0xEE, 0, 14], &adobe(0)[..]].concat()),
    ];
    let mut unknown_version = jfif.clone();
    unknown_version[11] = 7;
    for bytes in other.into_iter().chain([unknown_version]) {
        assert_eq!(reason(&bytes), Ineligible::Colour);
    }
    // Without either marker the components' numbers are used.
    let unmarked = without_jfif(&jfif, 0xFE, b"a comment");
    assert!(on_cuda(&unmarked).is_ok());
    let numbered = |bytes: &[u8], ids: [u8; 3]| {
        let (frame, scan) = (position(bytes, 0xC0, 0), position(bytes, 0xDA, 0));
        let mut bytes = bytes.to_vec();
        for (index, id) in ids.into_iter().enumerate() {
            bytes[frame + 10 + 3 * index] = id;
            bytes[scan + 5 + 2 * index] = id;
        }
        bytes
    };
    assert_eq!(reason(&numbered(&unmarked, *b"RGB")), Ineligible::Colour);
    assert_eq!(reason(&numbered(&jfif, *b"RGB")), Ineligible::Colour);
    assert_eq!(reason(&numbered(&unmarked, [0, 1, 2])), Ineligible::Colour);
    assert!(on_cuda(&numbered(&jfif, [0, 1, 2])).is_ok());
    assert_eq!(reason(&numbered(&jfif, [1, 2, 2])), Ineligible::Structure);
}

#[test]
fn what_a_camera_appends_is_left_out() {
    let bytes = PLAIN.draw(64, 48);
    let found = on_cuda(&[&bytes[..], b"\0\0\xFF\xD8 a second picture"].concat()).unwrap();
    assert_eq!(found.length, bytes.len());
}

#[test]
fn limits_and_other_formats_are_refused() {
    let bytes = PLAIN.draw(64, 48);
    let small = DecodeLimits { max_bytes: bytes.len() - 1, ..DecodeLimits::default() };
    let few = DecodeLimits { max_pixels: 64 * 48 - 1, ..DecodeLimits::default() };
    for limits in [small, few] {
        assert_eq!(eligible(&bytes, NvJpegBackend::Cuda, &limits), Err(Ineligible::Refused));
    }
    for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"\xFF\xD8", b"\xFF\xD8\xFF"] {
        assert_eq!(reason(bytes), Ineligible::Refused);
        assert!(EntropyCheck::default().check(bytes).is_err());
    }
    assert_eq!(Ineligible::SeveralScans.name(), "several_scans");
    assert!(Ineligible::Entropy.to_string().contains("entropy-coded"));
}

#[test]
fn planes_are_laid_out_as_the_kernel_reads_them() {
    let planes = JpegPlanes { width: 101, height: 67, components: 3, shift_x: 1, shift_y: 1 };
    assert_eq!(planes.sizes(), [(101, 67), (51, 34), (51, 34)]);
    let [y, b, r] = planes.destination(4096).planes;
    assert_eq!([y, b, r], [(4096, 104), (4096 + 7168, 52), (4096 + 7168 + 1792, 52)]);
    assert_eq!(planes.bytes(), 7168 + 2 * 1792);
    let layout = planes.layout(4096);
    assert_eq!(layout, PixelLayout::YCbCr { planes: [y, b, r], shift_x: 1, shift_y: 1 });
    assert_eq!(layout.least_pitches(101), [104, 52, 52]);
    let grey = JpegPlanes { components: 1, shift_x: 0, shift_y: 0, ..planes };
    assert_eq!(grey.destination(256).planes, [(256, 104), (0, 0), (0, 0)]);
    assert_eq!((grey.bytes(), grey.layout(256)), (7168, PixelLayout::Grey { plane: (256, 104) }));
}

fn is_taken_by_the_cpu(bytes: &[u8]) -> bool {
    Decoder::new(DecodeLimits::default()).unwrap().decode(bytes, u32::MAX).is_ok()
}

#[test]
fn what_is_cut_or_odd_is_not_eligible() {
    for kind in [PLAIN, GREY, PROGRESSIVE] {
        let bytes = kind.draw(64, 48);
        for cut in (0..bytes.len()).step_by(3).chain([bytes.len() - 2, bytes.len() - 1]) {
            assert!(on_cuda(&bytes[..cut]).is_err(), "{kind:?} cut at {cut}");
        }
        let tables = position(&bytes, 0xDB, 0);
        for (insert, what) in [
            (&b"\0\0\0"[..], "bytes between segments"),
            (&[0xFF, 0xFF], "fill bytes"),
            (&[0xFF, 0xD8], "a second SOI"),
            (&[0xFF, 0xDC, 0, 4, 0, 48], "DNL"),
            (&[0xFF, 0xDB, 0, 4, 0, 1], "half a quantization table"),
            (&[0xFF, 0xC4, 0, 4, 0, 1], "half a Huffman table"),
        ] {
            assert!(on_cuda(&spliced(&bytes, tables, insert)).is_err(), "{what}, {kind:?}");
        }
        let late = position(&bytes, 0xDA, 0);
        assert!(on_cuda(&spliced(&bytes, late, &[0xFF, 0xE5, 0, 2])).is_ok());
    }
}

#[test]
fn a_colour_profile_must_be_whole_for_nvjpeg() {
    let bytes = PLAIN.draw(64, 48);
    let part = |number: u8, count: u8| [b"\xFF\xE2\0\x12ICC_PROFILE\0", &[number, count, 7, 7][..]].concat();
    let with = |parts: &[(u8, u8)]| {
        let parts: Vec<u8> = parts.iter().flat_map(|&(number, count)| part(number, count)).collect();
        spliced(&bytes, 20, &parts)
    };
    assert!(on_cuda(&with(&[(1, 1)])).is_ok() && on_cuda(&with(&[(1, 2), (2, 2)])).is_ok());
    for parts in [&[(1, 2)][..], &[(2, 2)], &[(1, 2), (1, 2)], &[(1, 2), (2, 3)], &[(0, 0)], &[(1, 0)]] {
        assert_eq!(reason(&with(parts)), Ineligible::Structure, "{parts:?}");
        // The profile is not used: the CPU decodes the pixels, which are complete.
        assert!(is_taken_by_the_cpu(&with(parts)), "{parts:?}");
    }
}

#[test]
fn missing_data_shows_in_the_codes_even_where_the_file_is_closed() {
    let mut entropy = EntropyCheck::default();
    for kind in [PLAIN, GREY, Kind { subsampling: Subsamp::Sub2x1, ..PLAIN }] {
        let bytes = kind.draw(64, 48);
        let start = position(&bytes, 0xDA, 0) + 14;
        for cut in (start..bytes.len() - 2).step_by(5) {
            let closed = [&bytes[..cut], &[0xFF, 0xD9]].concat();
            assert_eq!(entropy.check(&closed), Err(Ineligible::Entropy), "{kind:?} cut at {cut} and closed");
        }
        let longer = spliced(&bytes, bytes.len() - 2, &[0x3A, 0, 0x55]);
        assert_eq!(entropy.check(&longer), Err(Ineligible::Entropy));
        assert_eq!(entropy.check(&bytes), Ok(()), "after others that fail");
    }
}

#[test]
fn restart_markers_must_all_be_there_and_in_order() {
    for components in [1, 3] {
        let bytes = with_restarts(components, 8);
        assert!(is_taken_by_the_cpu(&bytes));
        assert!(asked(&bytes, NvJpegBackend::Hardware).is_ok());
        assert_eq!(EntropyCheck::default().check(&bytes), Ok(()));
        for intervals in [1, 7, 9] {
            assert_eq!(reason(&with_restarts(components, intervals)), Ineligible::Incomplete);
        }
        let mut swapped = bytes.clone();
        swapped[position(&bytes, 0xD2, 0) + 1] = 0xD3;
        assert_eq!(EntropyCheck::default().check(&swapped), Err(Ineligible::Entropy));
    }
}

#[test]
fn several_scans_are_for_cuda_and_must_bring_every_component() {
    let bytes = in_scans(3);
    assert!(is_taken_by_the_cpu(&bytes));
    assert_eq!(asked(&bytes, NvJpegBackend::Hardware), Err(Ineligible::SeveralScans));
    assert!(on_cuda(&bytes).is_ok());
    assert_eq!(EntropyCheck::default().check(&bytes), Err(Ineligible::Entropy));
    for scans in [1, 2] {
        assert_eq!(reason(&in_scans(scans)), Ineligible::Incomplete);
    }
}

#[test]
fn tables_must_be_sound_and_all_there() {
    let bytes = with_restarts(1, 8);
    let (quantization, dc) = (position(&bytes, 0xDB, 0), position(&bytes, 0xC4, 0));
    let (ac, scan) = (position(&bytes, 0xC4, 1), position(&bytes, 0xDA, 0));
    for (at, value, what) in [
        (quantization + 4, 1, "the quantization table has another number"),
        (quantization + 4, 0x10, "its steps have 16 bits"),
        (dc + 4, 1, "the DC table has another number"),
        (dc + 4, 4, "there is no such DC table"),
        (dc + 21, 12, "a DC category is too large for 8 bits"),
        (ac + 4, 0x11, "the AC table has another number"),
        (ac + 4, 0x20, "the table has another class"),
        (ac + 5, 2, "a code is all ones, and its symbol is missing"),
        (scan + 6, 0x22, "the scan uses tables that baseline does not have"),
    ] {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        assert_eq!(reason(&bytes), Ineligible::Tables, "{what}");
    }
}

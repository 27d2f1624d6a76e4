//! What must be there of a JPEG, and be sound, before nvJPEG may be given it.

use gpu_kernels::decode::nvjpeg::{EntropyCheck, Ineligible, NvJpegBackend};
use gpu_kernels::{DecodeLimits, Decoder};
use turbojpeg::Subsamp;

use crate::drawn::{GREY, Kind, PLAIN, PROGRESSIVE, in_scans, position, spliced, with_restarts};
use crate::eligibility::{asked, on_cuda, reason};

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
        // The profile is not used: the CPU takes the pixels, which are all there.
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

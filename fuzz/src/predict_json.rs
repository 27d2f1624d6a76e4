//! JSON requests: results equal those of reference JSON and base64 decoders, and valid requests are accepted.
//!
//! An input is a body. One that begins with a zero byte is an image instead, which is written in one of the forms that clients
//! use.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde_json::Value;
use weir::http::forms::Payload;

use crate::multipart::taken;

/// Checks the property.
pub fn check(input: &[u8]) {
    if let Some(image) = input.strip_prefix(&[0]) {
        return written(image);
    }
    let Ok(posted) = taken(b"application/json", input) else { return };
    let text = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input);
    match posted {
        Payload::Image(image) if image == input => {}
        Payload::Image(image) => {
            let body: Value = serde_json::from_slice(text).expect("JSON of what was taken as JSON");
            let text = body["image"].as_str().expect("an image in base64");
            assert_eq!(image, decoded(text), "another image than was sent");
        }
        Payload::Url(url) => {
            let body: Value = serde_json::from_slice(text).expect("JSON of what was taken as JSON");
            assert_eq!(body["image_url"].as_str(), Some(url.as_str()));
        }
        Payload::Files(_) => panic!("files of a body that is no form"),
    }
}

/// Base64 of either alphabet, bit by bit; other characters are skipped.
fn decoded(text: &str) -> Vec<u8> {
    let data = match text.split_once(',') {
        Some((_, data)) => data,
        None => text,
    };
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in data.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => continue,
        };
        (bits, held) = (bits << 6 | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}

fn written(input: &[u8]) {
    let Some((form, image)) = input.split_first().filter(|(_, image)| !image.is_empty()) else { return };
    let mut text = match form % 3 {
        0 => STANDARD.encode(image),
        1 => STANDARD_NO_PAD.encode(image),
        _ => URL_SAFE.encode(image),
    };
    if form & 0x40 != 0 {
        text = text
            .as_bytes()
            .chunks(76)
            .map(|line| std::str::from_utf8(line).expect("ASCII"))
            .collect::<Vec<_>>()
            .join("\r\n");
    }
    if form & 0x20 != 0 {
        text.insert_str(0, "data:image/jpeg;base64,");
    }
    let mut body = serde_json::json!({ "image": text }).to_string();
    if form & 0x10 != 0 {
        body.insert(0, '\u{feff}');
    }
    match taken(b"application/json", body.as_bytes()) {
        Ok(Payload::Image(found)) => assert_eq!(found, image, "another image than was sent"),
        other => panic!("a sound request became {other:?}"),
    }
}

//! Forms: parsed into files or refused, without invented data, and all memory is released.
//!
//! An input is a Content-Type, a newline and a body. One that begins with a zero byte is written as a form instead, which must
//! be parsed into the same files.

use bytes::Bytes;
use weir::http::forms::{Payload, Refusal, parse_body as parse};
use weir::memory::BodyMemory;

use crate::harness::measured;

/// Most files of a form.
const MAX_FILES: usize = 8;
/// Copies of the body that may exist at the same time, and the fixed cost of a form.
const COPIES: u64 = 4;
const FIXED: u64 = 64 << 10;
const BOUNDARY: &str = "edge";

/// Checks the property.
pub fn check(input: &[u8]) {
    if let Some(files) = input.strip_prefix(&[0]) {
        return written(files);
    }
    let at = memchr::memchr(b'\n', input).unwrap_or(input.len());
    let (content_type, body) = (&input[..at], input.get(at + 1..).unwrap_or_default());
    let default = format!("multipart/form-data; boundary={BOUNDARY}");
    let content_type = if content_type.is_empty() { default.as_bytes() } else { content_type };
    let posted = taken(content_type, body);
    let Ok(Payload::Files(files)) = posted else { return };
    assert!((1..=MAX_FILES).contains(&files.len()), "{} files", files.len());
    let mut from = 0;
    for (_, file) in &files {
        // In the order of the body, each a part of it.
        let at = memchr::memmem::find(&body[from..], file).expect("a file that is not in the body");
        from += at + file.len();
    }
}

/// Parses a body within the memory limits.
pub(crate) fn taken(content_type: &[u8], body: &[u8]) -> Result<Payload, Refusal> {
    let memory = BodyMemory::new(64 << 20, 1 << 20);
    let copy = Bytes::copy_from_slice(body);
    let (posted, cost) = measured(|| pollster::block_on(parse(content_type, copy, MAX_FILES, &memory)));
    let most = FIXED + COPIES * (body.len() + content_type.len()) as u64;
    assert!(cost.bytes <= most, "{} bytes for a body of {}", cost.bytes, body.len());
    if let Err(refusal) = &posted {
        assert!((400..500).contains(&refusal.status), "{refusal:?}");
        assert!(!refusal.code.is_empty() && !refusal.message.is_empty(), "{refusal:?}");
        assert!(refusal.message.len() <= 1024, "a message of {} bytes", refusal.message.len());
        assert_eq!(memory.used(), 0, "a refused body holds memory");
    }
    assert!(memory.used() <= 2 * body.len(), "{} bytes are held", memory.used());
    posted
}

/// Writes a form whose files are what lies between bytes of 0xFE, and reads it.
fn written(input: &[u8]) {
    let end = format!("\r\n--{BOUNDARY}");
    let parts: Vec<&[u8]> = input.split(|&byte| byte == 0xFE).take(MAX_FILES).collect();
    if parts.iter().any(|part| memchr::memmem::find(&[part, &b"\r\n"[..]].concat(), end.as_bytes()).is_some())
    {
        return;
    }
    let mut body = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let field = ["file", "files", "image"][index % 3];
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"{index}.jpg\"\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(part);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    match taken(format!("multipart/form-data; boundary={BOUNDARY}").as_bytes(), &body) {
        Ok(Payload::Files(files)) => {
            let names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
            let expected: Vec<_> = (0..parts.len()).map(|index| format!("{index}.jpg")).collect();
            assert_eq!(names, expected);
            assert!(files.iter().map(|(_, file)| &file[..]).eq(parts), "the files are others than were sent");
        }
        other => panic!("a sound form became {other:?}"),
    }
}

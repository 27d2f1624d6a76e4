//! Requests built once and sent many times: a head, an optional unique tag, and the image's own bytes.

use std::fmt::Write;

use super::target::Target;
use crate::frames::{Frame, TAG_LEN, TagError, tag_segment};

/// Options of all requests of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Make every posted body unique, so that no cache can answer.
    pub unique: bool,
    /// `X-Deadline-Ms` of every request.
    pub deadline_ms: Option<u32>,
    /// `camera` in the query of every request.
    pub camera: Option<String>,
}

/// A request that is ready to be sent: `prefix` (head, and with a tag also the image's first two bytes
/// and the tag), then `rest`.
#[derive(Debug)]
pub struct Request {
    prefix: Vec<u8>,
    rest: Vec<u8>,
    tagged: bool,
}

impl Request {
    /// A POST of one frame.
    ///
    /// # Errors
    /// When bodies are to be unique and the frame is not a JPEG.
    pub fn post(target: &Target, frame: &Frame, options: &Options) -> Result<Self, TagError> {
        let bytes = &frame.bytes;
        let length = bytes.len() + if options.unique { TAG_LEN } else { 0 };
        let mut head = format!("POST {}", target.path);
        if let Some(camera) = &options.camera {
            let camera: String = url::form_urlencoded::byte_serialize(camera.as_bytes()).collect();
            let mark = if target.path.contains('?') { '&' } else { '?' };
            // Writing into a String cannot fail.
            let _ = write!(head, "{mark}camera={camera}");
        }
        let _ = write!(
            head,
            " HTTP/1.1\r\nHost: {}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n",
            target.host
        );
        if let Some(deadline) = options.deadline_ms {
            let _ = write!(head, "X-Deadline-Ms: {deadline}\r\n");
        }
        head.push_str("\r\n");
        let mut prefix = head.into_bytes();
        let mut rest = bytes.as_slice();
        if options.unique {
            let Some((start @ [0xff, 0xd8], after)) = bytes.split_first_chunk() else {
                return Err(TagError::NotJpeg);
            };
            prefix.extend_from_slice(start);
            prefix.extend_from_slice(&tag_segment(0, 0));
            rest = after;
        }
        Ok(Self { prefix, rest: rest.to_vec(), tagged: options.unique })
    }

    /// A POST of JSON.
    #[must_use]
    pub fn json(target: &Target, body: Vec<u8>) -> Self {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            target.path,
            target.host,
            body.len()
        );
        Self { prefix: head.into_bytes(), rest: body, tagged: false }
    }

    /// A GET without a body.
    #[must_use]
    pub fn get(target: &Target) -> Self {
        let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", target.path, target.host);
        Self { prefix: head.into_bytes(), rest: Vec::new(), tagged: false }
    }

    /// Copies the prefix into `prefix`, with the tag of this run and number when bodies are unique.
    pub fn fill(&self, prefix: &mut Vec<u8>, run: u64, number: u64) {
        prefix.clear();
        prefix.extend_from_slice(&self.prefix);
        if self.tagged {
            let at = prefix.len() - TAG_LEN;
            prefix[at..].copy_from_slice(&tag_segment(run, number));
        }
    }

    /// The bytes after the prefix.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::with_tag;

    fn parts(request: &Request, run: u64, number: u64) -> (String, Vec<u8>) {
        let mut sent = Vec::new();
        request.fill(&mut sent, run, number);
        sent.extend_from_slice(request.rest());
        let end = sent.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8(sent[..end].to_vec()).unwrap(), sent[end..].to_vec())
    }

    fn frame(bytes: &[u8]) -> Frame {
        Frame { name: String::new(), bytes: bytes.to_vec() }
    }

    #[test]
    fn a_unique_body_is_the_tagged_frame_and_its_length_is_declared() {
        let jpeg = frame(b"\xff\xd8the rest of a picture");
        let options = Options { unique: true, ..Options::default() };
        let request = Request::post(&Target::local(80, "/predict"), &jpeg, &options).unwrap();
        for number in [1, 2] {
            let (head, body) = parts(&request, 9, number);
            assert_eq!(body, with_tag(&jpeg.bytes, 9, number).unwrap());
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        }
    }

    #[test]
    fn a_repeated_body_is_the_file_itself() {
        let png = frame(b"\x89PNG");
        let request = Request::post(&Target::local(80, "/predict"), &png, &Options::default()).unwrap();
        assert_eq!(parts(&request, 9, 1).1, png.bytes);
    }

    #[test]
    fn deadline_and_camera_are_sent() {
        let options =
            Options { deadline_ms: Some(250), camera: Some("dock 3&x".into()), ..Options::default() };
        let target = Target::local(80, "/predict?top_k=3");
        let (head, _) = parts(&Request::post(&target, &frame(b"x"), &options).unwrap(), 0, 0);
        assert!(head.starts_with("POST /predict?top_k=3&camera=dock+3%26x HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("X-Deadline-Ms: 250\r\n"), "{head}");
    }

    #[test]
    fn json_is_sent_as_such_and_whole() {
        let request = Request::json(&Target::local(80, "/batch/predict"), b"{}".to_vec());
        let (head, body) = parts(&request, 0, 0);
        assert!(head.starts_with("POST /batch/predict HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Content-Type: application/json\r\nContent-Length: 2\r\n"), "{head}");
        assert_eq!(body, b"{}");
    }

    #[test]
    fn another_kind_of_image_cannot_be_unique() {
        let options = Options { unique: true, ..Options::default() };
        let error = Request::post(&Target::local(80, "/"), &frame(b"\x89PNG"), &options).unwrap_err();
        assert_eq!(error, TagError::NotJpeg);
    }
}

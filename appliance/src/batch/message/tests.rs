//! All forms of a message, valid and invalid.

use std::time::Duration;

use super::*;

const MAX: u64 = 10;

fn parse(json: &str) -> Result<BatchMessage, MessageError> {
    BatchMessage::parse(json.as_bytes(), "requests-0-17", MAX)
}

#[test]
fn every_form_is_understood() {
    let table = [
        (r#"{"image_url": "http://a/1.jpg"}"#, "~requests-0-17", 1),
        (r#"{"request_id": "b", "image_urls": ["http://a/1", "s3://b/2"]}"#, "b", 2),
        (
            r#"{"request_id":"b","image_urls":["u","v"],"timestamp":"2024-05-01T10:00:00.5","num_images":2}"#,
            "b",
            2,
        ),
        (r#"{"request_id":"b","image_urls":["u"],"timestamp":1714557600.25,"num_images":1}"#, "b", 1),
        (
            r#"{"request_id":null,"image_urls":["u","u"],"camera":null,"top_k":null,"more":{"x":1}}"#,
            "~requests-0-17",
            2,
        ),
    ];
    for (json, id, total) in table {
        let message = parse(json).unwrap_or_else(|e| panic!("{json}: {e}"));
        let spec = BatchSpec { request_id: id.into(), total, chunks: 1, digest: String::new() };
        assert_eq!((message.spec, message.chunk, message.first), (spec, 0, 0), "{json}");
        assert_eq!(message.image_urls.len() as u64, total);
        assert_eq!((message.camera, message.top_k), (None, None));
    }
    let asked = parse(r#"{"image_url": "u", "camera": "dock 3", "top_k": 3}"#).unwrap();
    assert_eq!((asked.camera.as_deref(), asked.top_k), (Some("dock 3"), Some(3)));
}

#[test]
fn what_is_written_is_read_back() {
    let message = BatchMessage {
        spec: BatchSpec { request_id: "b-1".into(), total: 9, chunks: 4, digest: "ab12".into() },
        chunk: 2,
        first: 6,
        camera: Some("dock-3".into()),
        top_k: Some(2),
        submitted_at: Some("2026-01-31T12:00:00.250Z".into()),
        image_urls: vec!["http://a/\"6\"".into(), "blob:7".into(), "s3://b/ü".into()],
    };
    assert_eq!(BatchMessage::parse(&message.to_bytes().unwrap(), "p", MAX).unwrap(), message);
    let time = message.submitted().unwrap();
    assert_eq!(
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap(),
        Duration::from_millis(1_769_860_800_250)
    );
    let bare = BatchMessage { camera: None, top_k: None, submitted_at: None, ..message };
    assert_eq!(BatchMessage::parse(&bare.to_bytes().unwrap(), "p", MAX).unwrap(), bare);
}

#[test]
fn what_is_wrong_is_named() {
    let long = format!(r#"{{"image_url": "http://{}"}}"#, "a".repeat(MAX_URL_BYTES));
    let many = format!(r#"{{"image_urls": [{}"u"]}}"#, "\"u\",".repeat(10));
    let chunk = |fields: &str| format!(r#"{{"request_id":"b","image_urls":["u","v"],{fields}}}"#);
    let table = [
        ("not json".to_owned(), "not JSON"),
        ("[1]".into(), "an array, not a JSON object"),
        ("7".into(), "a number, not a JSON object"),
        ("{}".into(), "neither image_url nor image_urls"),
        (r#"{"image_urls": []}"#.into(), "neither image_url nor image_urls"),
        (r#"{"image_url": "u", "image_urls": ["u"]}"#.into(), "exclude each other"),
        (r#"{"image_url": 5}"#.into(), "image_url: it is 5, not a string"),
        (r#"{"image_url": ""}"#.into(), "image_url: it has 0 bytes"),
        (r#"{"image_urls": "u"}"#.into(), "image_urls: it is a string, not an array"),
        (r#"{"image_urls": ["u", null]}"#.into(), "image_urls[1]: it is null"),
        (long, "image_url: it has 4103 bytes; a URL has 1 to 4096"),
        (many, "image_urls: 11 images; at most 10"),
        (r#"{"image_url": "u", "request_id": 5}"#.into(), "request_id: it is 5"),
        (r#"{"image_url": "u", "request_id": "../x"}"#.into(), "\"../x\""),
        (r#"{"image_url": "u", "request_id": ".x"}"#.into(), "request_id"),
        (r#"{"image_url": "u", "request_id": ""}"#.into(), "request_id"),
        (r#"{"image_url": "u", "camera": ["x"]}"#.into(), "camera: it is an array"),
        (r#"{"image_url": "u", "camera": "a\u0000b"}"#.into(), "camera:"),
        (r#"{"image_url": "u", "top_k": 0}"#.into(), "top_k: 0 is not a whole number from 1 to 1000"),
        (r#"{"image_url": "u", "top_k": 2.5}"#.into(), "top_k: it is 2.5"),
        (r#"{"image_url": "u", "top_k": "3"}"#.into(), "top_k: it is a string"),
        (r#"{"image_url": "u", "timestamp": []}"#.into(), "timestamp: it is an array"),
        (r#"{"image_url": "u", "submitted_at": "yesterday"}"#.into(), "submitted_at: \"yesterday\""),
        (r#"{"image_urls": ["u"], "num_images": 2}"#.into(), "it says 2, and image_urls has 1"),
        (r#"{"image_urls": ["u"], "num_images": -1}"#.into(), "num_images: it is -1"),
        (chunk(r#""chunk":0"#), "belong together"),
        (chunk(r#""chunk":2,"chunks":2,"total":4,"first":0"#), "there is no chunk 2 of 2"),
        (chunk(r#""chunk":0,"chunks":0,"total":2,"first":0"#), "there is no chunk 0 of 0"),
        (chunk(r#""chunk":0,"chunks":1,"total":11,"first":0"#), "11 images; at most 10"),
        (chunk(r#""chunk":1,"chunks":2,"total":4,"first":3"#), "2 images from 3 on do not fit a total of 4"),
        (chunk(r#""chunk":0,"chunks":1,"total":4,"first":0"#), "do not fit"),
        (chunk(r#""chunk":0,"chunks":9,"total":4,"first":0"#), "9 chunks of 4 images"),
        (chunk(r#""chunk":0,"chunks":1,"total":2,"first":18446744073709551615"#), "do not fit"),
        (chunk(r#""digest":1"#), "digest: it is 1"),
        (r#"{"image_urls": ["u", 5, null]}"#.into(), "image_urls[1]: it is 5, not a string"),
        (r#"{"image_url": true}"#.into(), "image_url: it is true or false"),
        (r#"{"image_url": {"a": [1]}, "camera": "c"}"#.into(), "image_url: it is an object"),
        (r#"{"image_url": "u"} more"#.into(), "not JSON"),
    ];
    for (json, named) in table {
        let error = parse(&json).expect_err(&json).to_string();
        assert!(error.contains(named), "{json}: {error}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(parse(&deep), Err(MessageError::NotJson(_))));
    assert!(matches!(BatchMessage::parse(&[0xff, 0xfe], "p", MAX), Err(MessageError::NotJson(_))));
}

#[test]
fn a_message_without_an_id_has_one_that_no_message_can_name() {
    let named = parse(r#"{"image_url": "u", "request_id": "requests-0-17"}"#).unwrap().spec;
    let bare = parse(r#"{"image_url": "u"}"#).unwrap().spec;
    assert_ne!(named.request_id, bare.request_id);
    assert_eq!(BatchMessage::unreadable("requests-0-17").spec, bare);
    let stolen = parse(r#"{"image_url": "u", "request_id": "~requests-0-17"}"#).unwrap_err().to_string();
    assert!(stolen.contains("request_id"), "{stolen}");
}

#[test]
fn a_message_has_its_own_bound_whatever_a_batch_may_have() {
    let of = |images: u64| {
        let urls = "\"u\",".repeat(usize::try_from(images).unwrap() - 1);
        let json = format!(r#"{{"request_id": "b", "image_urls": [{urls}"u"]}}"#);
        BatchMessage::parse(json.as_bytes(), "p", 200_000)
    };
    assert_eq!(of(MAX_MESSAGE_IMAGES).unwrap().spec.total, MAX_MESSAGE_IMAGES);
    let error = of(100_000).unwrap_err().to_string();
    assert!(error.contains("image_urls: 100000 images; at most 10000 are taken in one message"), "{error}");
    // A batch of more, in several messages.
    let part = r#"{"request_id":"b","image_urls":["u"],"chunk":0,"chunks":100,"total":100000,"first":0}"#;
    assert_eq!(BatchMessage::parse(part.as_bytes(), "p", 200_000).unwrap().spec.total, 100_000);
}

#[test]
fn what_is_there_twice_counts_as_it_stands_last() {
    let message =
        parse(r#"{"image_urls": ["a", 5], "image_url": 7, "image_url": null, "image_urls": ["b"]}"#);
    assert_eq!(message.unwrap().image_urls, ["b"]);
}

//! Every kind of invalid input has its status, code and error text; none of it reaches the outbox.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use base64::Engine;
use support::client::{connect, read};
use support::{Daemon, pictures, sample};

/// Description, headers, body; status and code of the refusal.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Vec<u8>, u16, &'a str);

fn multipart(field: &str, file: &[u8]) -> Vec<u8> {
    let mut body = format!(
        "--edge\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"a.jpg\"\r\n\
         content-type: image/jpeg\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n--edge--\r\n");
    body
}

#[test]
fn every_bad_body_is_refused_by_name() {
    let daemon = Daemon::start(&[]);
    let (picture, _) = sample();
    let form = [("content-type", "multipart/form-data; boundary=edge")];
    let json = [("content-type", "application/json")];
    let jpeg = [("content-type", "image/jpeg")];
    let none: [(&str, &str); 0] = [];
    let truncated = &picture[..picture.len() / 2];
    let cases: Vec<Case<'_>> = vec![
        ("empty", &none, vec![], 400, "empty_body"),
        ("truncated JPEG", &jpeg, truncated.to_vec(), 400, "corrupt_image"),
        ("JPEG cut in its header", &jpeg, picture[..100].to_vec(), 400, "corrupt_image"),
        ("text", &jpeg, b"this is not a picture".to_vec(), 415, "unsupported_type"),
        ("HTML", &none, b"<!doctype html><p>fish</p>".to_vec(), 415, "unsupported_type"),
        ("30,000 x 30,000 PNG in 1 KB", &none, pictures::png_header(30_000, 30_000), 422, "too_many_pixels"),
        (
            "30,000 x 30,000 JPEG in 1 KB",
            &none,
            pictures::jpeg_header(30_000, 30_000, false, 1),
            422,
            "too_many_pixels",
        ),
        ("10,000 scans", &none, pictures::jpeg_header(512, 512, true, 10_000), 422, "too_many_scans"),
        ("PNG without pixels", &none, pictures::png_header(64, 64), 400, "corrupt_image"),
        ("multipart without file", &form, multipart("photo", &picture), 400, "missing_file"),
        (
            "multipart that ends early",
            &form,
            multipart("file", &picture)[..200].to_vec(),
            400,
            "invalid_multipart",
        ),
        (
            "multipart without boundary",
            &[("content-type", "multipart/form-data")],
            picture.clone(),
            400,
            "invalid_multipart",
        ),
        ("a form with an empty file", &form, multipart("file", b""), 400, "empty_image"),
        ("no JSON", &json, b"{\"image\": ".to_vec(), 400, "invalid_json"),
        ("JSON of another shape", &json, b"{\"picture\": \"x\"}".to_vec(), 400, "invalid_json"),
        ("a JSON array", &json, b"[\"https://example.com/a.jpg\", null]".to_vec(), 400, "invalid_json"),
        ("JSON without an image", &json, b"{}".to_vec(), 400, "invalid_json"),
        ("JSON with both", &json, b"{\"image\": \"x\", \"image_url\": \"y\"}".to_vec(), 400, "invalid_json"),
        ("base64 that is not", &json, b"{\"image\": \"fish & chips!\"}".to_vec(), 400, "invalid_base64"),
        ("base64 of text", &json, b"{\"image\": \"aGVsbG8gd29ybGQ=\"}".to_vec(), 415, "unsupported_type"),
        ("no URL", &json, b"{\"image_url\": \"not a url\"}".to_vec(), 400, "invalid_url"),
        ("a file URL", &json, b"{\"image_url\": \"file:///etc/passwd\"}".to_vec(), 400, "invalid_url"),
        ("a URL inside", &json, b"{\"image_url\": \"http://127.0.0.1:9/\"}".to_vec(), 422, "url_refused"),
        (
            "a metadata URL",
            &json,
            b"{\"image_url\": \"http://169.254.169.254/\"}".to_vec(),
            422,
            "url_refused",
        ),
    ];
    for (what, headers, body, status, code) in cases {
        let reply = daemon.post("/predict", headers, &body);
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{what}: {}", reply.text());
        assert!(reply.header("x-request-id").is_some(), "{what}: no request id");
    }
    assert!(daemon.events().is_empty());
    assert_eq!(daemon.post("/predict", &[], &picture).status, 200, "it still serves");
}

#[test]
fn an_image_is_known_by_its_bytes() {
    let daemon = Daemon::start(&[]);
    for content_type in ["image/jpeg", "application/json", "text/plain", "application/octet-stream"] {
        for picture in [pictures::png(100), pictures::bmp(64, 64, 1)] {
            let reply = daemon.post("/predict", &[("content-type", content_type)], &picture);
            assert_eq!(reply.status, 200, "{content_type}: {}", reply.text());
        }
    }
}

#[test]
fn bad_queries_and_headers_are_refused_by_name() {
    let daemon = Daemon::start(&[]);
    let (picture, _) = sample();
    for (path, status, code) in [
        ("/predict?top_k=0", 400, "invalid_query"),
        ("/predict?top_k=18", 400, "invalid_query"),
        ("/predict?top_k=many", 400, "invalid_query"),
        ("/predict?topk=3", 400, "invalid_query"),
        ("/predict?camera=", 400, "invalid_query"),
        ("/predict?camera=a%0Ab", 400, "invalid_query"),
        ("/predict?camera=a&camera=b", 400, "invalid_query"),
        ("/predict?model=birds", 404, "unknown_model"),
    ] {
        let reply = daemon.post(path, &[], &picture);
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{path}: {}", reply.text());
    }
    for value in ["0", "-5", "soon", "99999999"] {
        let reply = daemon.post("/predict", &[("x-deadline-ms", value)], &picture);
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_deadline"), "{value}");
    }
    assert_eq!(daemon.get("/predict").code(), "method_not_allowed");
    assert_eq!(daemon.get("/predict").status, 405);
    assert_eq!((daemon.get("/nothing").status, daemon.get("/nothing").code().as_str()), (404, "not_found"));
    assert!(daemon.events().is_empty());
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let daemon = Daemon::start(&[("WEIR__HTTP__MAX_BODY", "100000")]);
    let mut stream = connect(daemon.address);
    // The body is not sent: the response can only be based on the head.
    stream
        .write_all(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000000000\r\n\r\n")
        .unwrap();
    let reply = read(&mut stream);
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    // A client that sends the body anyway can still read the response.
    let reply = daemon.post("/predict", &[], &vec![7; 10_000_000]);
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
}

#[test]
fn a_chunked_body_that_never_ends_is_cut_by_size() {
    let daemon = Daemon::start(&[("WEIR__HTTP__MAX_BODY", "100000")]);
    let mut stream = connect(daemon.address);
    stream
        .write_all(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let mut chunk = b"1000\r\n".to_vec();
    chunk.extend_from_slice(&[7; 0x1000]);
    chunk.extend_from_slice(b"\r\n");
    for _ in 0..40 {
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let reply = read(&mut stream);
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
}

#[test]
fn a_body_that_stalls_is_cut_by_time() {
    let daemon = Daemon::start(&[("WEIR__HTTP__BODY_TIMEOUT", "300ms")]);
    for head in ["transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "content-length: 1000\r\n\r\nhello"] {
        let started = Instant::now();
        let mut stream = connect(daemon.address);
        stream.write_all(format!("POST /predict HTTP/1.1\r\nhost: localhost\r\n{head}").as_bytes()).unwrap();
        let reply = read(&mut stream);
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"), "{head}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_deadline_that_passes_is_504() {
    // All bodies may be in flight together, so that only a deadline refuses one.
    let daemon =
        Daemon::start(&[("WEIR__ENGINE__LANES", "1"), ("WEIR__HTTP__MAX_INFLIGHT_PER_ADDRESS", "64 MiB")]);
    // Decoding one of these takes more than a millisecond on any machine, so that at least the first is late; on a
    // slow one the others wait for the one lane past their deadline.
    let replies: Vec<_> = std::thread::scope(|scope| {
        let address = daemon.address;
        let post = move |seed: u32| {
            let picture = pictures::bmp(1500, 1500, seed);
            let deadline = if seed == 0 { "1" } else { "20" };
            support::post(address, "/predict", &[("x-deadline-ms", deadline)], &picture)
        };
        let threads: Vec<_> = (0..6).map(|seed| scope.spawn(move || post(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let late: Vec<_> = replies.iter().filter(|r| r.status != 200).collect();
    assert!(!late.is_empty(), "none was late");
    for reply in &late {
        assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"), "{}", reply.text());
    }
    // A deadline that passes during the fsync leaves an event; a response always has one.
    let events = daemon.events().len();
    assert!((replies.len() - late.len()..=replies.len()).contains(&events), "{events} events");
}

#[test]
fn base64_and_forms_are_served() {
    let daemon = Daemon::start(&[]);
    let (picture, label) = sample();
    let text = base64::engine::general_purpose::STANDARD.encode(&picture);
    for body in
        [format!("{{\"image\": \"{text}\"}}"), format!("{{\"image\": \"data:image/jpeg;base64,{text}\"}}")]
    {
        let reply = daemon.post("/predict", &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(reply.json()["species"], label.as_str(), "{}", reply.text());
    }
    let form = [("content-type", "multipart/form-data; boundary=edge")];
    let reply = daemon.post("/predict", &form, &multipart("file", &picture));
    assert_eq!(reply.json()["species"], label.as_str(), "{}", reply.text());

    let mut two = multipart("file", &picture);
    two.truncate(two.len() - "--edge--\r\n".len());
    two.extend_from_slice(&multipart("file", b"not a picture"));
    let reply = daemon.post("/predict", &form, &two);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let results = reply.json()["results"].as_array().unwrap().clone();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["species"], label.as_str());
    assert_eq!(results[1]["code"], "unsupported_type");
    assert_eq!(daemon.events().len(), 4, "one event a picture that was answered");
}

//! Files whose bodies break off, are too long, or are something else.

use std::path::PathBuf;
use std::sync::Mutex;

use cloud_sync::registry::ModelRegistry;

use crate::server::{config, open, page, reply, version, with_file};

/// Bytes that differ from place to place.
fn content(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("model.onnx");
    (dir, to)
}

#[tokio::test]
async fn a_body_that_breaks_off_is_gone_on_with_if_it_is_the_same() {
    let (bytes, other) = (content(9 << 20), content((9 << 20) - 1));
    // (response to the second request, the file afterwards)
    for case in ["goes on", "knows no ranges", "has another file", "wrong range"] {
        let expected = if case == "has another file" { other.clone() } else { bytes.clone() };
        let (served, broken) = (expected.clone(), bytes.clone());
        let calls = Mutex::new(0);
        let listed = expected.len();
        let (uri, requests) = with_file("model.onnx", listed, move |head| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            let whole = |etag: &str| reply("200 OK", &format!("ETag: {etag}\r\n"), &served);
            match (*calls, head.header("range")) {
                (1, _) => {
                    let mut answer = reply("200 OK", "ETag: \"one\"\r\n", &broken);
                    answer.truncate(answer.len() - (3 << 20));
                    answer
                }
                (2, Some(_)) if case == "goes on" => {
                    let headers =
                        format!("Content-Range: bytes 4194304-{}/{listed}\r\nETag: \"one\"\r\n", listed - 1);
                    reply("206 Partial Content", &headers, &served[4 << 20..])
                }
                (2, Some(_)) if case == "wrong range" => reply(
                    "206 Partial Content",
                    "Content-Range: bytes 1-9/10\r\nETag: \"one\"\r\n",
                    b"xxxxxxxxx",
                ),
                (_, _) if case == "has another file" => whole("\"two\""),
                (_, _) => whole("\"one\""),
            }
        });
        let (registry, _) = open(&config(&uri));
        let (_dir, to) = place();
        // The other file is listed with its own length from the beginning: what exceeds it is refused.
        let error = registry.fetch(&version(), "model.onnx", &to, 1 << 30).await.unwrap_err();
        if case == "has another file" {
            assert!(error.in_full().contains("it is listed with"), "{}", error.in_full());
        } else {
            assert!(error.is_transient(), "{case}: {}", error.in_full());
        }
        registry
            .fetch(&version(), "model.onnx", &to, 1 << 30)
            .await
            .unwrap_or_else(|e| panic!("{case}: {e:?}"));
        assert!(std::fs::read(&to).unwrap() == expected, "{case}");
        let asked: Vec<_> =
            requests.lock().unwrap().iter().filter(|head| head.asks("/1/x/model.onnx")).cloned().collect();
        if case != "has another file" {
            assert_eq!(
                (asked[1].header("range"), asked[1].header("if-range")),
                (Some("bytes=4194304-"), Some("\"one\""))
            );
        }
        assert_eq!(asked.len(), if case == "wrong range" { 3 } else { 2 }, "{case}");
    }
}

#[tokio::test]
async fn a_body_that_is_longer_or_shorter_than_listed_is_refused() {
    let chunked = |bytes: &[u8]| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let size = format!("{:x}\r\n", bytes.len());
        [head.as_bytes(), size.as_bytes(), bytes, b"\r\n0\r\n\r\n"].concat()
    };
    let longer = content(1001);
    for (answer, transient, words) in [
        (reply("200 OK", "", &longer), false, "listed with 1000"),
        (chunked(&longer), false, "listed with 1000"),
        (chunked(&longer[..900]), true, "broke off after 900 of 1000"),
        (reply("200 OK", "", &longer[..900]), true, "broke off after 900 of 1000"),
        (page("200 OK"), false, "web page"),
        (reply("200 OK", "Content-Encoding: gzip\r\n", &longer[..1000]), false, "compressed"),
        (reply("404 Not Found", "", br#"{"error_code": "RESOURCE_DOES_NOT_EXIST"}"#), false, "model.onnx"),
        (reply("206 Partial Content", "", &longer[..1000]), false, "not the whole file"),
    ] {
        let (uri, _) = with_file("model.onnx", 1000, move |_| answer.clone());
        let (registry, _) = open(&config(&uri));
        let (_dir, to) = place();
        let error = registry.fetch(&version(), "model.onnx", &to, 1 << 30).await.unwrap_err();
        assert_eq!(error.is_transient(), transient, "{}", error.in_full());
        assert!(error.in_full().contains(words), "{words}: {}", error.in_full());
    }
}

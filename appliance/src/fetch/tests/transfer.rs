//! Bounds of a transfer, connections that end early, certificates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use test_services::tls::{in_front_of, self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::{FetchError, Fetcher};
use super::{TIME, config, fetcher, server};
use crate::config::FetchConfig;

#[tokio::test]
async fn fetches_within_an_allowed_network() {
    let port = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let body =
        fetcher(true).fetch(&format!("http://127.0.0.1:{port}/a.jpg"), TIME, &mut |_| true).await.unwrap();
    assert_eq!(&body[..], b"hello");
}

#[tokio::test]
async fn bounds_on_size_and_time_and_status() {
    let declared = server("HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\nx").await;
    let endless = server(concat!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\n",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n40\r\n",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n"
    ))
    .await;
    for port in [declared, endless] {
        let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{port}/"), TIME, &mut |_| true).await;
        assert!(matches!(outcome, Err(FetchError::TooLarge { limit: 100, .. })), "{outcome:?}");
    }
    let stalling = server("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nstall").await;
    let started = Instant::now();
    let short = Duration::from_millis(200);
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{stalling}/"), short, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::TimedOut { .. })), "{outcome:?}");
    assert!(started.elapsed() < Duration::from_secs(30));
    let missing = server("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{missing}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Status { status: 404, .. })), "{outcome:?}");
    let outcome = fetcher(true).fetch("http://127.0.0.1:1/", TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Failed { .. })), "{outcome:?}");
}

/// Answers the first request of each connection and promises to keep it, then closes it at the next request without
/// a response. Counts connections.
async fn forgetful_server(answers: bool) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            seen.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                if answers {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
                    let _ = stream.read(&mut [0; 4096]).await;
                }
            });
        }
    });
    (port, connections)
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closes_fails_no_fetch() {
    let (port, connections) = forgetful_server(true).await;
    let (fetcher, url) = (fetcher(true), format!("http://127.0.0.1:{port}/"));
    for n in 0..8 {
        let body = fetcher.fetch(&url, TIME, &mut |_| true).await.unwrap_or_else(|e| panic!("{n}: {e}"));
        assert_eq!(&body[..], b"hello");
    }
    assert!(connections.load(Ordering::SeqCst) > 1, "no connection was closed");
}

#[tokio::test]
async fn a_server_that_never_answers_is_tried_twice() {
    let (port, connections) = forgetful_server(false).await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{port}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Failed { .. })), "{outcome:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_location_may_hold_what_is_beyond_ascii() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (paths, mut asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..read]);
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = match path.as_str() {
                "/" => {
                    "HTTP/1.1 302 X\r\nlocation: /f\u{f6}rsta bild.jpg\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                }
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
            };
            let _ = paths.send(path);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let body = fetcher(true).fetch(&url, TIME, &mut |_| true).await.unwrap();
    assert_eq!(&body[..], b"hello");
    assert_eq!(
        (asked.recv().await.unwrap(), asked.recv().await.unwrap()),
        ("/".into(), "/f%C3%B6rsta%20bild.jpg".into())
    );
}

#[tokio::test]
async fn memory_and_number_are_bounded() {
    let port = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let url = format!("http://127.0.0.1:{port}/");
    let refused = fetcher(true).fetch(&url, TIME, &mut |bytes| bytes < 5).await;
    assert!(matches!(refused, Err(FetchError::NoRoom)), "{refused:?}");
    let none = Fetcher::new(FetchConfig { max_concurrent: 0, ..FetchConfig::default() }, 100);
    assert!(matches!(none.fetch(&url, TIME, &mut |_| true).await, Err(FetchError::NoRoom)));
}

#[tokio::test]
async fn switched_off_means_off() {
    let off = Fetcher::new(FetchConfig { enabled: false, ..FetchConfig::default() }, 100);
    assert!(matches!(off.fetch("http://example.com/", TIME, &mut |_| true).await, Err(FetchError::Disabled)));
}

/// Sends a part of an image and ends the connection, for so many requests, then sends another image in full.
async fn breaking_server(breaks: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let image = match seen.fetch_add(1, Ordering::SeqCst) < breaks {
                true => "a part",
                false => "another image, whole",
            };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{image}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, requests)
}

#[tokio::test]
async fn a_transfer_that_breaks_off_is_begun_once_more() {
    let (port, requests) = breaking_server(1).await;
    let url = format!("http://127.0.0.1:{port}/");
    let mut most = 0;
    let mut room = |bytes| {
        most = bytes;
        true
    };
    let body = fetcher(true).fetch(&url, TIME, &mut room).await.unwrap();
    assert_eq!(&body[..], b"another image, whole");
    assert_eq!((requests.load(Ordering::SeqCst), most), (2, 20));
    // Not more often, and what is not the connection's fault not at all.
    let (port, requests) = breaking_server(usize::MAX).await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{port}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Failed { .. })), "{outcome:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_server_that_sends_too_slowly_is_given_up_before_the_timeout() {
    let stalling = server("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nstall").await;
    let url = format!("http://127.0.0.1:{stalling}/");
    let slow = FetchConfig {
        min_rate: ByteSize::b(100),
        rate_window: Duration::from_millis(200),
        timeout: Duration::from_secs(600),
        ..config(true)
    };
    let outcome = Fetcher::new(slow.clone(), 100).fetch(&url, Duration::from_secs(600), &mut |_| true).await;
    let error = outcome.unwrap_err();
    assert!(matches!(error, FetchError::TooSlow { rate: 100, .. }), "{error:?}");
    assert!(error.is_transient() && error.to_string().contains("fetch.min_rate"), "{error}");
    // Without a bound only the timeout ends it.
    let unbounded = FetchConfig { min_rate: ByteSize::b(0), timeout: Duration::from_secs(1), ..slow };
    let outcome = Fetcher::new(unbounded, 100).fetch(&url, TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::TimedOut { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_camera_that_signed_its_own_certificate_is_trusted_where_the_file_names_it() {
    let plain = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello").await;
    let dir = tempfile::tempdir().unwrap();
    let upstream = format!("127.0.0.1:{plain}");
    let (key, own) = self_signed(dir.path(), "own", "IP:127.0.0.1");
    let port = in_front_of(upstream, &key, &own);
    let url = format!("https://127.0.0.1:{port}/");
    let fetch = async |ca_file: Option<&std::path::Path>| {
        let config = FetchConfig { ca_file: ca_file.map(Into::into), ..config(true) };
        Fetcher::new(config, 100).fetch(&url, TIME, &mut |_| true).await
    };
    assert_eq!(&fetch(Some(&own)).await.unwrap()[..], b"hello");
    let (_, other) = self_signed(dir.path(), "other", "IP:127.0.0.1");
    for file in [None, Some(other.as_path())] {
        let error = fetch(file).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{file:?}: {error}");
    }
    // A file that is not there for a moment fails the fetches of that moment, no later one.
    let late = dir.path().join("late.pem");
    let config = FetchConfig { ca_file: Some(late.clone()), ..config(true) };
    let fetcher = Fetcher::new(config, 100);
    let error = fetcher.fetch(&url, TIME, &mut |_| true).await.unwrap_err();
    assert!(matches!(error, FetchError::Client(_)), "{error:?}");
    std::fs::copy(&own, &late).unwrap();
    assert_eq!(&fetcher.fetch(&url, TIME, &mut |_| true).await.unwrap()[..], b"hello");
    // Several certificates in one file, as of a fleet of cameras.
    let both = dir.path().join("both.pem");
    let text = [&other, &own].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&both, text).unwrap();
    assert_eq!(&fetch(Some(&both)).await.unwrap()[..], b"hello");
}

//! Attempts to get past the guard, and the transfer's bounds against a real server on loopback.

use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{FetchError, Fetcher, guard};
use crate::config::FetchConfig;

const TIME: Duration = Duration::from_secs(5);

#[test]
fn the_table_of_bypass_attempts() {
    let refused = [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://172.31.255.255/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fc00::1]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        "http://[2001:db8::1]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://198.18.0.1/",
        "http://192.0.2.1/",
        "http://168.63.129.16/",
        "http://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
    ];
    for url in refused {
        let parsed = Url::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        let outcome = guard::check_url(&parsed, &[]);
        assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{url}: {outcome:?}");
    }
    for url in
        ["file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "http://u:p@example.com/"]
    {
        let outcome = guard::check_url(&Url::parse(url).unwrap(), &[]);
        assert!(matches!(outcome, Err(FetchError::BadUrl { .. })), "{url}: {outcome:?}");
    }
    for url in
        ["http://93.184.216.34/", "https://[2606:4700::1111]/", "http://example.com/", "http://172.32.0.1/"]
    {
        guard::check_url(&Url::parse(url).unwrap(), &[]).unwrap_or_else(|e| panic!("{url}: {e}"));
    }
}

#[test]
fn allowed_networks_open_themselves_but_never_metadata() {
    let allow = ["192.168.8.0/24".parse().unwrap(), "0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    assert!(guard::may_reach("192.168.8.7".parse().unwrap(), &allow[..1]));
    assert!(!guard::may_reach("192.168.9.7".parse().unwrap(), &allow[..1]));
    assert!(guard::may_reach("127.0.0.1".parse().unwrap(), &allow));
    for metadata in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"] {
        assert!(!guard::may_reach(metadata.parse().unwrap(), &allow), "{metadata}");
    }
}

/// Serves one canned answer to every connection; `{port}` in it becomes the server's own.
async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = answer.replace("{port}", &port.to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                if answer.contains("stall") {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                }
            });
        }
    });
    port
}

fn fetcher(allow: bool) -> Fetcher {
    let allow_networks = if allow { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
    Fetcher::new(FetchConfig { allow_networks, ..FetchConfig::default() }, 100)
}

#[tokio::test]
async fn fetches_within_an_allowed_network() {
    let port = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let body =
        fetcher(true).fetch(&format!("http://127.0.0.1:{port}/a.jpg"), TIME, &mut |_| true).await.unwrap();
    assert_eq!(&body[..], b"hello");
}

#[tokio::test]
async fn a_name_for_loopback_is_refused() {
    let port = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let outcome = fetcher(false).fetch(&format!("http://localhost:{port}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_redirect_is_checked_anew() {
    let to_metadata = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
    let port = server(to_metadata).await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{port}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{outcome:?}");
    let to_file = "HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n";
    let port = server(to_file).await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{port}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::BadUrl { .. })), "{outcome:?}");
    let to_itself = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\n\r\n";
    let port = server(to_itself).await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{port}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Redirects { limit: 3 })), "{outcome:?}");
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
    assert!(started.elapsed() < Duration::from_secs(3));
    let missing = server("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let outcome = fetcher(true).fetch(&format!("http://127.0.0.1:{missing}/"), TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Status { status: 404, .. })), "{outcome:?}");
    let outcome = fetcher(true).fetch("http://127.0.0.1:1/", TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Failed { .. })), "{outcome:?}");
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

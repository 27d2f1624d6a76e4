//! What the guard refuses: addresses, names that lead to them, redirects, forms of URL.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::client::Lookup;
use super::super::{FetchError, Fetcher, guard};
use super::{TIME, fetcher, server};
use crate::config::FetchConfig;

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
    for metadata in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.42.42",
        "169.254.0.23",
        "192.0.0.192",
        "100.100.100.200",
        "168.63.129.16",
        "::ffff:169.254.169.254",
        "::ffff:169.254.42.42",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::c000:c0",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "fe80::a9fe:a9fe",
    ] {
        assert!(!guard::may_reach(metadata.parse().unwrap(), &allow), "{metadata}");
    }
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

/// Names with their addresses, look-up by look-up; the last one stays.
struct Names {
    table: std::collections::HashMap<&'static str, Vec<Vec<IpAddr>>>,
    asked: parking_lot::Mutex<std::collections::HashMap<String, usize>>,
}

impl Lookup for Names {
    fn lookup(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut asked = self.asked.lock();
        let times = asked.entry(host.clone()).or_default();
        let answers = self.table.get(host.as_str());
        let found = answers.and_then(|answers| answers.get((*times).min(answers.len() - 1)).cloned());
        *times += 1;
        Box::pin(async move { found.ok_or_else(|| io::Error::other("no such name")) })
    }
}

fn names(table: &[(&'static str, &[&[&str]])]) -> Arc<Names> {
    let addresses = |list: &&[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
    let entry =
        |(name, answers): &(&'static str, &[&[&str]])| (*name, answers.iter().map(addresses).collect());
    Arc::new(Names { table: table.iter().map(entry).collect(), asked: Default::default() })
}

/// Takes 127.0.0.2 alone for a public address.
fn careful(names: &Arc<Names>) -> Fetcher {
    let allow_networks = vec!["127.0.0.2/32".parse().unwrap()];
    let config = FetchConfig { allow_networks, ..FetchConfig::default() };
    Fetcher::with_lookup(config, 100, Arc::clone(names) as _)
}

/// Servers on one port of 127.0.0.1 and 127.0.0.2 that answer with their own number.
async fn two_servers() -> (u16, Arc<AtomicUsize>) {
    let (port, public, private) = loop {
        let public = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = public.local_addr().unwrap().port();
        // Another process may have the port on the other address.
        if let Ok(private) = TcpListener::bind(("127.0.0.1", port)).await {
            break (port, public, private);
        }
    };
    let touched = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&touched);
    tokio::spawn(async move {
        while private.accept().await.is_ok() {
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = public.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\npublic")
                .await;
        }
    });
    (port, touched)
}

#[tokio::test]
async fn names_that_lead_inside_are_refused() {
    let names = names(&[
        ("loopback.example", &[&["127.0.0.1"]]),
        ("loopback6.example", &[&["::1"]]),
        ("metadata.example", &[&["169.254.169.254"]]),
        ("private.example", &[&["10.0.0.5", "192.168.1.1"]]),
        ("mapped.example", &[&["::ffff:127.0.0.1"]]),
        ("nat64.example", &[&["64:ff9b::a9fe:a9fe"]]),
        ("6to4.example", &[&["2002:7f00:1::"]]),
        ("unspecified.example", &[&["0.0.0.0"]]),
        ("localhost", &[&["127.0.0.1"]]),
        ("localhost.", &[&["127.0.0.1"]]),
    ]);
    let fetcher = careful(&names);
    let hosts: Vec<_> = names.table.keys().copied().collect();
    for host in hosts {
        for url in [format!("http://{host}/"), format!("https://{host}:8443/x"), format!("http://{host}:1/")]
        {
            let outcome = fetcher.fetch(&url, TIME, &mut |_| true).await;
            assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{url}: {outcome:?}");
        }
    }
    let outcome = fetcher.fetch("http://nowhere.example/", TIME, &mut |_| true).await;
    assert!(matches!(outcome, Err(FetchError::Failed { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_name_that_changes_its_address_gains_nothing() {
    let names = names(&[("rebind.example", &[&["127.0.0.2"], &["127.0.0.1"]])]);
    let (port, touched) = two_servers().await;
    let (fetcher, url) = (careful(&names), format!("http://rebind.example:{port}/"));
    let body = fetcher.fetch(&url, TIME, &mut |_| true).await.unwrap();
    assert_eq!(&body[..], b"public", "what was checked is what is connected to");
    assert_eq!(names.asked.lock()["rebind.example"], 1, "one look-up a connection");
    let again = fetcher.fetch(&url, TIME, &mut |_| true).await;
    assert!(matches!(again, Err(FetchError::Refused { .. })), "{again:?}");
    assert_eq!(touched.load(Ordering::SeqCst), 0, "the private server was reached");
}

#[tokio::test]
async fn of_several_addresses_only_the_public_ones_are_tried() {
    let names = names(&[("both.example", &[&["127.0.0.1", "127.0.0.2", "169.254.169.254"]])]);
    let (port, touched) = two_servers().await;
    for _ in 0..5 {
        let body = careful(&names).fetch(&format!("http://both.example:{port}/"), TIME, &mut |_| true).await;
        assert_eq!(&body.unwrap()[..], b"public");
    }
    assert_eq!(touched.load(Ordering::SeqCst), 0, "the private server was reached");
}

#[tokio::test]
async fn redirects_lead_nowhere_that_a_url_may_not() {
    let names = names(&[("inside.example", &[&["127.0.0.1"]])]);
    let table = [
        ("http://127.0.0.1/", true),
        ("http://2130706433/", true),
        ("http://[::ffff:127.0.0.1]/", true),
        ("http://169.254.169.254/latest/meta-data/", true),
        ("http://inside.example/", true),
        ("//inside.example/", true),
        ("http://u:p@127.0.0.2/", false),
        ("file:///etc/passwd", false),
        ("gopher://127.0.0.2:6379/_FLUSHALL", false),
        ("ftp://127.0.0.2/", false),
    ];
    for (location, by_address) in table {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = format!("HTTP/1.1 307 X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let outcome = careful(&names).fetch(&url, TIME, &mut |_| true).await;
        match by_address {
            true => assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{location}: {outcome:?}"),
            false => assert!(matches!(outcome, Err(FetchError::BadUrl { .. })), "{location}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn forms_of_url_that_confuse_parsers() {
    let names = names(&[]);
    let fetcher = careful(&names);
    let refused = [
        "http://127.0.0.1./",
        "http://0x7f.1/",
        "http://0x7f.0.0.0x1/",
        "http://017700000001/",
        "http://127.0.0.1:80/",
        "http://127.0.0.1:65535/",
        "http:127.0.0.1/",
        "http:\\\\127.0.0.1\\",
        "http://127.0.0.1\\@127.0.0.2/",
        "HTTP://127.0.0.1/",
        "http://127.0.0.1#@127.0.0.2/",
        "http://127.0.0.1?@127.0.0.2/",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        "http://[0:0:0:0:0:ffff:7f00:1]/",
        "http://[::7f00:1]/",
        "http://[64:ff9b::10.0.0.1]/",
        "http://[2002:a9fe:a9fe::]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fec0::1]/",
    ];
    for url in refused {
        let outcome = fetcher.fetch(url, TIME, &mut |_| true).await;
        assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{url}: {outcome:?}");
    }
    let bad = [
        "http://127.0.0.2:80@127.0.0.1/",
        "http://127.0.0.2@127.0.0.1/",
        "http://:p@127.0.0.2/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://127.0.0.1:99999/",
        "http://256.0.0.1/",
        "http:///",
        "http://",
        "file:///etc/passwd",
        "file://127.0.0.2/etc/passwd",
        "gopher://127.0.0.2/",
        "dict://127.0.0.2:11211/stat",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "ldap://127.0.0.2/",
        "/etc/passwd",
        "127.0.0.2/x",
        "",
        "http://exa mple.com/",
    ];
    for url in bad {
        let outcome = fetcher.fetch(url, TIME, &mut |_| true).await;
        assert!(matches!(outcome, Err(FetchError::BadUrl { .. })), "{url}: {outcome:?}");
    }
}

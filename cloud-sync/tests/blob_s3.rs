//! The blob store in S3: the contract on a real server, and faults of the server.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "contract/blob.rs"]
mod contract;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sync::blob::{BlobStore, S3Config, S3Store};
use cloud_sync::check::CheckStep;
use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use contract::{content, key, keys, put};
use test_services::tls::{in_front_of, self_signed};
use test_services::{S3, Services, shared};

fn config(s3: &S3) -> S3Config {
    S3Config {
        prefix: format!("test-{}", ulid::Ulid::generate()),
        endpoint: Some(s3.endpoint.clone()),
        region: Some(s3.region.clone()),
        credentials_file: Some(s3.credentials_file.clone()),
        ..S3Config::new(&s3.bucket)
    }
}

async fn open(config: S3Config) -> (S3Store, LinkHealth) {
    let health = LinkHealth::new(Link::S3);
    (S3Store::open(config, health.clone()).await.unwrap(), health)
}

struct InS3(S3Config);

#[async_trait]
impl contract::Harness for InS3 {
    async fn new() -> Self {
        Self(config(shared().s3()))
    }

    async fn open(&self) -> [Arc<dyn BlobStore>; 2] {
        [Arc::new(open(self.0.clone()).await.0), Arc::new(open(self.0.clone()).await.0)]
    }

    async fn check(&self) -> Vec<CheckStep> {
        open(self.0.clone()).await.0.check().await
    }
}

contract::suite!(InS3);

#[tokio::test]
async fn the_prefix_is_in_front_of_keys_and_another_bucket_has_none() {
    let s3 = shared().s3();
    let config = config(s3);
    let (store, health) = open(config.clone()).await;
    let bytes = content(100);
    store.put(&key("a/o.bin"), bytes.clone(), "image/jpeg").await.unwrap();
    let whole = format!("{}/a/o.bin", config.prefix);
    assert_eq!(store.uri(&key("a/o.bin")), format!("s3://{}/{whole}", s3.bucket));
    let other = store.bucket(&s3.bucket).unwrap();
    assert_eq!(other.get(&key(&whole), 1000).await.unwrap(), Some(bytes.clone()));
    assert_eq!(store.get_any(&whole, 1000).await.unwrap(), Some(bytes));
    assert_eq!(store.get_any("a/o.bin", 1000).await.unwrap(), None);
    assert_eq!(store.get_any("what others call ü & ?%20#.jpg", 1000).await.unwrap(), None);
    assert!(!store.get_any("", 1000).await.unwrap_err().is_transient());
    assert!(!store.get_any(&"x".repeat(1025), 1000).await.unwrap_err().is_transient());
    assert_eq!(health.state().up, Some(true));
    for name in ["../other", "a/b", "AB", "x", "a..b", "-ab", &"x".repeat(64), "a b", ""] {
        let error = store.bucket(name).unwrap_err();
        assert!(!error.is_transient() && error.in_full().contains(&format!("{name:?}")), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_refused_is_permanent_and_says_what_to_do_without_the_secret() {
    let s3 = shared().s3();
    let dir = tempfile::tempdir().unwrap();
    let keys = |access: &str, secret: &str| {
        let file = dir.path().join(format!("{access}-{}", secret.len()));
        std::fs::write(
            &file,
            format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"),
        )
        .unwrap();
        Some(file)
    };
    let wrong = "hunter2hunter2hunter2hunter2";
    let cases = [
        (S3Config { bucket: "no-such-bucket-of-ours".into(), ..config(s3) }, "there is no such bucket"),
        (
            S3Config { credentials_file: keys(&s3.access_key(), wrong), ..config(s3) },
            "correct access key and secret",
        ),
        (
            S3Config { credentials_file: keys("AKIANOBODY", wrong), ..config(s3) },
            "correct access key and secret",
        ),
    ];
    for (config, remedy) in cases {
        let bucket = config.bucket.clone();
        let (store, health) = open(config).await;
        for error in [
            store.put(&key("o.bin"), content(5), "").await.unwrap_err(),
            store.get(&key("o.bin"), 100).await.unwrap_err(),
            store.list("", None).await.unwrap_err(),
        ] {
            let text = error.in_full();
            assert!(!error.is_transient() && text.contains(remedy) && text.contains(&bucket), "{text}");
            let all = format!("{text}{error:?}{store:?}");
            assert!(!all.contains("hunter2") && !all.contains(&s3.secret_key()), "{text}");
        }
        assert_eq!(health.state().up, Some(false), "{remedy}");
        let steps = store.check().await;
        assert!(steps.len() == 1 && steps[0].outcome.is_err());
    }
    // The response to HEAD has no message.
    let (store, _) = open(S3Config { credentials_file: keys(&s3.access_key(), wrong), ..config(s3) }).await;
    assert!(!store.head(&key("o.bin")).await.unwrap_err().is_transient());
    let none = dir.path().join("none");
    std::fs::write(&none, "[other]\n").unwrap();
    let (store, _) = open(S3Config { credentials_file: Some(none), ..config(s3) }).await;
    let error = store.get(&key("o.bin"), 100).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("no credentials"), "{}", error.in_full());
}

#[tokio::test]
async fn what_others_name_and_is_refused_says_nothing_of_the_link() {
    let s3 = shared().s3();
    let (store, health) = open(config(s3)).await;
    store.put(&key("o.bin"), content(5), "").await.unwrap();
    let other = store.bucket("no-such-bucket-of-ours").unwrap();
    let error = other.get_any("a/name/of/somebody", 100).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("a/name/of/somebody"), "{}", error.in_full());
    let state = health.state();
    assert_eq!((state.up, state.failures, state.last_error), (Some(true), 0, None));
    // A refused call of the link itself counts against the link.
    let (gone, health) = open(S3Config { bucket: "no-such-bucket-of-ours".into(), ..config(s3) }).await;
    assert!(!gone.list("", None).await.unwrap_err().is_transient());
    assert_eq!(health.state().up, Some(false));

    let busy = answering(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let (store, health) = open(S3Config { endpoint: Some(busy), attempts: 1, ..config(s3) }).await;
    let other = store.bucket("others").unwrap();
    assert!(other.get_any("a/name/of/somebody", 100).await.unwrap_err().is_transient());
    let state = health.state();
    let said = state.last_error.unwrap();
    assert_eq!(state.up, Some(false));
    assert!(said.contains("s3://others") && said.contains("503") && !said.contains("somebody"), "{said}");
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_by_value() {
    let refused =
        async |config| S3Store::open(config, LinkHealth::new(Link::S3)).await.unwrap_err().in_full();
    let base = || config(shared().s3());
    for bucket in ["", "a/b", "UPPER"] {
        let text = refused(S3Config { bucket: bucket.into(), ..base() }).await;
        assert!(text.contains(&format!("{bucket:?}")), "{text}");
    }
    for prefix in ["a//b", "../x", "a b", &"x".repeat(121)] {
        let text = refused(S3Config { prefix: prefix.into(), ..base() }).await;
        assert!(text.contains(prefix), "{text}");
    }
    for endpoint in ["", "localhost:9000", "ftp://x", "http://"] {
        let text = refused(S3Config { endpoint: Some(endpoint.into()), ..base() }).await;
        assert!(text.contains(&format!("{endpoint:?}")), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    for content in
        [None, Some("no certificate"), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
    {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let text = refused(S3Config { ca_file: Some(file.clone()), ..base() }).await;
        assert!(text.contains("ca.pem"), "{text}");
    }
    let text = refused(S3Config { credentials_file: Some(dir.path().join("gone")), ..base() }).await;
    assert!(text.contains("gone"), "{text}");
    // A valid CA file does no harm to a storage without TLS.
    let ca_file = Some(shared().redis().ca_file.clone());
    let (store, _) = open(S3Config { ca_file, ..base() }).await;
    assert_eq!(store.get(&key("o.bin"), 100).await.unwrap(), None);
}

/// A server that responds to every request with `reply`, byte by byte, and then closes the connection.
fn answering(reply: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 8192]);
            let _ = stream.write_all(reply);
        }
    });
    endpoint
}

#[tokio::test]
async fn a_storage_that_is_away_silent_or_broken_is_transient_in_bounded_time() {
    // Nothing listens on the discard port.
    let gone = "http://127.0.0.1:9".to_owned();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let short = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\nonly a part");
    let busy = answering(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    for endpoint in [gone, silent.0, short, busy] {
        let config = S3Config {
            endpoint: Some(endpoint.clone()),
            connect_timeout: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(1),
            ..config(shared().s3())
        };
        let (store, health) = open(config).await;
        let start = Instant::now();
        let error = store.get(&key("o.bin"), 10_000).await.unwrap_err();
        assert!(error.is_transient(), "{endpoint}: {}", error.in_full());
        assert!(error.in_full().contains("o.bin"), "{}", error.in_full());
        assert!(start.elapsed() < Duration::from_secs(15), "{endpoint}: {:?}", start.elapsed());
        assert_eq!(health.state().up, Some(false), "{endpoint}");
    }
}

#[tokio::test]
async fn with_tls_the_authority_decides() {
    // Any server with TLS will do for the handshake.
    let redis = shared().redis();
    let tls = S3Config {
        endpoint: Some(format!("https://{}:{}", redis.host, redis.tls_port)),
        attempt_timeout: Duration::from_secs(20),
        attempts: 1,
        ..config(shared().s3())
    };
    let (store, _) = open(tls.clone()).await;
    let error = store.get(&key("o.bin"), 100).await.unwrap_err();
    assert!(error.is_transient() && error.in_full().contains("its certificate is not trusted"), "{error:?}");
    let (store, _) = open(S3Config { ca_file: Some(redis.ca_file.clone()), ..tls }).await;
    let error = store.get(&key("o.bin"), 100).await.unwrap_err();
    assert!(error.is_transient() && !error.in_full().contains("certificate"), "{}", error.in_full());
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_trusted_where_the_file_names_it() {
    let s3 = shared().s3();
    let upstream = || s3.endpoint.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    let dir = tempfile::tempdir().unwrap();
    let (key_file, own) = self_signed(dir.path(), "own", "DNS:localhost,IP:127.0.0.1");
    let port = in_front_of(upstream(), &key_file, &own);
    let named = |port: u16, file: &Path| S3Config {
        endpoint: Some(format!("https://127.0.0.1:{port}")),
        ca_file: Some(file.to_owned()),
        attempts: 1,
        ..config(s3)
    };
    // Every operation of a store: small and large objects, parts, lists, missing objects.
    let (store, health) = open(named(port, &own)).await;
    let handle: Arc<dyn BlobStore> = Arc::new(store.clone());
    let large = content(20 << 20);
    put(&handle, "a+b/(1)!,~@=.bin", &content(1000)).await;
    put(&handle, "large.bin", &large).await;
    assert_eq!(store.get(&key("large.bin"), 30 << 20).await.unwrap(), Some(large));
    assert_eq!(store.get(&key("a+b/(1)!,~@=.bin"), 2000).await.unwrap(), Some(content(1000)));
    assert_eq!(store.get(&key("none.bin"), 2000).await.unwrap(), None);
    assert_eq!(keys(&handle, "").await, ["a+b/(1)!,~@=.bin", "large.bin"]);
    for step in store.check().await {
        assert!(step.outcome.is_ok(), "{step:?}");
    }
    assert_eq!(health.state().up, Some(true));

    let (_, other) = self_signed(dir.path(), "other", "DNS:localhost,IP:127.0.0.1");
    let (key_file, elsewhere) = self_signed(dir.path(), "elsewhere", "DNS:storage.example");
    let refused = [
        named(port, &other),
        named(in_front_of(upstream(), &key_file, &elsewhere), &elsewhere),
        S3Config { ca_file: None, ..named(port, &own) },
    ];
    for config in refused {
        let (store, _) = open(config).await;
        let error = store.get(&key("large.bin"), 100).await.unwrap_err();
        let text = error.in_full();
        assert!(error.is_transient() && text.contains("its certificate is not trusted"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_was_away_is_used_again_and_has_what_was_acknowledged() {
    let services = Services::own(&["s3"]);
    let (store, health) =
        open(S3Config { attempt_timeout: Duration::from_secs(2), ..config(services.s3()) }).await;
    let handle: Arc<dyn BlobStore> = Arc::new(store.clone());
    put(&handle, "before.bin", &content(1000)).await;
    services.kill("s3");
    let error = store.put(&key("during.bin"), content(1000), "").await.unwrap_err();
    assert!(error.is_transient(), "{}", error.in_full());
    assert_eq!(health.state().up, Some(false));
    services.start("s3");
    put(&handle, "after.bin", &content(1000)).await;
    assert_eq!(keys(&handle, "").await, ["after.bin", "before.bin"]);
    assert_eq!(health.state().up, Some(true));

    services.pause("s3");
    let start = Instant::now();
    assert!(store.get(&key("before.bin"), 1000).await.unwrap_err().is_transient());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    services.resume("s3");
    assert_eq!(store.get(&key("before.bin"), 1000).await.unwrap(), Some(content(1000)));
}

/// Uploads in progress, as the server knows them.
async fn unfinished(s3: &S3, prefix: &str) -> usize {
    let shared = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(aws_config::Region::new(s3.region.clone()))
        .endpoint_url(&s3.endpoint)
        .credentials_provider(aws_sdk_s3::config::Credentials::new(
            s3.access_key(),
            s3.secret_key(),
            None,
            None,
            "t",
        ))
        .load()
        .await;
    let config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(true).build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let found = client.list_multipart_uploads().bucket(&s3.bucket).send().await.unwrap();
    let uploads = found.uploads.unwrap_or_default();
    uploads.iter().filter(|upload| upload.key().is_some_and(|key| key.starts_with(prefix))).count()
}

async fn gone(s3: &S3, prefix: &str) {
    let start = Instant::now();
    while unfinished(s3, prefix).await > 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "the parts are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_in_parts_that_fails_or_is_given_up_leaves_the_old_object_and_no_parts() {
    let s3 = shared().s3();
    let config = config(s3);
    let (store, _) = open(config.clone()).await;
    store.put(&key("o.bin"), content(10), "").await.unwrap();
    // The file is truncated while it is read.
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("file");
    let file = std::fs::File::create(path).unwrap();
    file.set_len(400 << 20).unwrap();
    let (object, from) = (key("o.bin"), path.to_owned());
    let upload = tokio::spawn({
        let store = store.clone();
        async move { store.put_file(&object, &from, "").await }
    });
    while unfinished(s3, &config.prefix).await == 0 {
        assert!(!upload.is_finished(), "{:?}", upload.await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    file.set_len(1).unwrap();
    let error = upload.await.unwrap().unwrap_err();
    assert!(!error.is_transient() && error.link() == Link::Disk, "{}", error.in_full());
    gone(s3, &config.prefix).await;

    let large = Bytes::from(vec![7; 200 << 20]);
    let upload = tokio::spawn({
        let store = store.clone();
        async move { store.put(&key("o.bin"), large, "").await }
    });
    while unfinished(s3, &config.prefix).await == 0 {
        assert!(!upload.is_finished(), "{:?}", upload.await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    gone(s3, &config.prefix).await;
    assert_eq!(store.get(&key("o.bin"), 100).await.unwrap(), Some(content(10)));
}

#[tokio::test]
async fn a_bucket_that_is_only_read_is_checked_without_a_trace() {
    let s3 = shared().s3();
    let (store, _) = open(config(s3)).await;
    let steps = store.check_reading().await;
    assert_eq!(steps.len(), 1);
    assert!(steps[0].outcome.as_ref().unwrap().contains("it is empty"), "{steps:?}");
    store.put(&key("a/o.bin"), content(100), "image/jpeg").await.unwrap();
    let steps = store.check_reading().await;
    assert_eq!(steps.len(), 2);
    assert!(steps[1].outcome.as_ref().unwrap().ends_with("/a/o.bin"), "{steps:?}");
    assert_eq!(store.list("", None).await.unwrap().objects.len(), 1);
    let missing = store.bucket("weir-no-such-bucket").unwrap();
    let steps = missing.check_reading().await;
    let error = steps[0].outcome.as_ref().unwrap_err().in_full();
    assert!(
        steps.len() == 1 && error.contains("weir-no-such-bucket") && error.contains("create it"),
        "{error}"
    );
}

//! The registry in MLflow with servers that misbehave: unavailable, of another kind, with wrong or interrupted
//! responses.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod bodies;
mod server;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::registry::{MlflowConfig, MlflowRegistry, ModelRegistry};
use cloud_sync::secret::Secret;
use server::{Head, PAGE, VERSION, config, json, open, page, reply, resolve, serve, version, with_file};

#[tokio::test]
async fn what_is_no_answer_is_transient_or_permanent_and_says_what_to_do() {
    let refused = r#"{"error_code": "PERMISSION_DENIED", "message": "no"}"#;
    let answers: Vec<(Vec<u8>, bool, &str)> = vec![
        (page("200 OK"), false, "web page"),
        (page("404 Not Found"), false, "is a proxy in between"),
        (page("502 Bad Gateway"), true, "502"),
        (reply("200 OK", "", PAGE), false, "web page"),
        (reply("200 OK", "", b"[1"), false, "is the URI right"),
        (page("401 Unauthorized"), false, "MLFLOW_TRACKING_USERNAME"),
        (reply("401 Unauthorized", "", b""), false, "MLFLOW_TRACKING_TOKEN"),
        (reply("403 Forbidden", "", refused.as_bytes()), false, "PERMISSION_DENIED (403): no"),
        (reply("429 Too Many Requests", "", b""), true, "429"),
        (reply("500 Internal Server Error", "", b"{}"), true, "500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{".to_vec(), true, ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), true, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4194305\r\n\r\n".to_vec(), false, "more than 4194304 bytes"),
        (reply("200 OK", "", &vec![b' '; (4 << 20) + 1]), false, "more than 4194304 bytes"),
        (
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            false,
            "redirects",
        ),
    ];
    for (answer, transient, words) in answers {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        let (uri, _) = serve(move |_, _| answer.clone());
        let (registry, health) = open(&config(&uri));
        for error in [
            resolve(&registry, "fish@champion").await.unwrap_err(),
            registry.artifacts(&version(), 10).await.unwrap_err(),
            registry.tag(&version(), "a", "b").await.unwrap_err(),
        ] {
            let text = error.in_full();
            assert_eq!(error.is_transient(), transient, "{shown}: {text}");
            assert!(text.contains(words) && text.contains("fish"), "{shown}: {text}");
            assert!(!format!("{text}{error:?}{registry:?}").contains("hunter2"), "{text}");
        }
        if !words.starts_with("more than") {
            assert_eq!(health.state().up, Some(false), "{shown}");
        }
        let steps = registry.check().await;
        assert!(steps.len() == 1 && steps[0].outcome.is_err(), "{shown}: {steps:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_or_silent_is_transient_in_bounded_time() {
    // Nothing listens on the discard port.
    let gone = "http://127.0.0.1:9".to_owned();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let (slow, _) = serve(|_, _| {
        std::thread::sleep(Duration::from_secs(60));
        json(VERSION)
    });
    for uri in [&gone, &silent.0, &slow] {
        let (registry, health) = open(&MlflowConfig { timeout: Duration::from_millis(500), ..config(uri) });
        let start = Instant::now();
        let error = resolve(&registry, "fish@champion").await.unwrap_err();
        assert!(error.is_transient() && error.in_full().contains("fish@champion"), "{}", error.in_full());
        assert!(start.elapsed() < Duration::from_secs(30), "{uri}: {:?}", start.elapsed());
        assert_eq!(health.state().up, Some(false));
    }
}

#[tokio::test]
async fn a_server_that_comes_back_is_up() {
    let (uri, requests) = serve(|_, before| match before {
        0 => reply("500 Internal Server Error", "", b"{}"),
        _ => json(VERSION),
    });
    let (registry, health) = open(&config(&uri));
    assert!(resolve(&registry, "fish@champion").await.unwrap_err().is_transient());
    assert_eq!(health.state().up, Some(false));
    let found = resolve(&registry, "fish@champion").await.unwrap().unwrap();
    assert_eq!((found.version.as_str(), found.tags["a"].as_str()), ("3", "b"));
    assert_eq!(
        found.created.unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(),
        1_700_000_000
    );
    assert_eq!(health.state().up, Some(true));
    let requests = requests.lock().unwrap();
    // box-1:hunter2
    assert_eq!(requests[0].header("authorization"), Some("Basic Ym94LTE6aHVudGVyMg=="));
    assert_eq!(requests[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let (uri, requests) = serve(|head, _| match head.header("if-none-match") {
        Some("\"v1\"") => reply("304 Not Modified", "", b""),
        _ => reply("200 OK", "ETag: \"v1\"\r\n", VERSION.as_bytes()),
    });
    let (registry, _) = open(&MlflowConfig { token: Secret::new("t0ken"), ..config(&uri) });
    let first = resolve(&registry, "fish@champion").await.unwrap().unwrap();
    assert_eq!(resolve(&registry, "fish@champion").await.unwrap().unwrap(), first);
    // Another query has another response.
    resolve(&registry, "fish@other").await.unwrap().unwrap();
    let requests = requests.lock().unwrap();
    let sent: Vec<_> = requests.iter().map(|head| head.header("if-none-match")).collect();
    assert_eq!(sent, [None, Some("\"v1\""), None]);
    assert_eq!(requests[0].header("authorization"), Some("Bearer t0ken"));
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_same_server_only() {
    let (other, stolen) = serve(|_, _| json(VERSION));
    let (uri, _) =
        serve(move |_, _| reply("307 Temporary Redirect", &format!("Location: {other}/x\r\n"), b""));
    let (registry, _) = open(&config(&uri));
    let error = resolve(&registry, "fish@champion").await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("redirects to another server"), "{error:?}");
    assert!(stolen.lock().unwrap().is_empty());

    let (uri, requests) = serve(|head, _| match head.asks("/moved") {
        true => json(VERSION),
        false => reply("307 Temporary Redirect", "Location: /moved\r\n", b""),
    });
    let (registry, _) = open(&config(&uri));
    assert!(resolve(&registry, "fish@champion").await.unwrap().is_some());
    assert!(requests.lock().unwrap()[1].header("authorization").is_some());
    let (uri, requests) = serve(|_, _| reply("307 Temporary Redirect", "Location: /again\r\n", b""));
    assert!(!resolve(&open(&config(&uri)).0, "fish@champion").await.unwrap_err().is_transient());
    assert!(requests.lock().unwrap().len() < 10);
}

#[tokio::test]
async fn an_old_server_is_asked_for_the_stage() {
    let stages = |head: &Head| match head.asks("stages=Production") || head.asks("stages=Staging") {
        true => json(&format!(r#"{{"model_versions": [{}]}}"#, &VERSION[18..VERSION.len() - 1])),
        false => json("{}"),
    };
    let not_found = br#"{"error_code": "ENDPOINT_NOT_FOUND", "message": "no such"}"#;
    for no_aliases in [page("404 Not Found"), reply("404 Not Found", "", not_found)] {
        let (uri, _) = serve(move |head, _| match head.asks("get-latest-versions") {
            true => stages(head),
            false => no_aliases.clone(),
        });
        let (registry, health) = open(&config(&uri));
        for alias in ["champion", "production", "Staging"] {
            let found = resolve(&registry, &format!("fish@{alias}")).await.unwrap().unwrap();
            assert_eq!(found.version, "3");
            assert!(found.aliases.contains(&alias.to_owned()), "{found:?}");
        }
        assert_eq!(resolve(&registry, "fish@archived").await.unwrap(), None);
        assert_eq!(health.state().up, Some(true));
        let error = resolve(&registry, "fish@blue").await.unwrap_err();
        assert!(!error.is_transient() && error.in_full().contains("older than 2.3"), "{}", error.in_full());
    }
}

#[tokio::test]
async fn a_compressed_answer_is_refused_unread() {
    // 10 MiB of zeros are 10 KiB compressed.
    let (uri, _) = serve(|_, _| reply("200 OK", "Content-Encoding: gzip\r\n", &[0x1f, 0x8b, 8, 0]));
    let (registry, _) = open(&config(&uri));
    let error = resolve(&registry, "fish@champion").await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("compressed"), "{}", error.in_full());
}

#[tokio::test]
async fn listed_paths_that_lead_out_are_refused_by_name() {
    for name in ["..", "../x", "/etc/passwd", "a//b", "a\\b", "."] {
        let (uri, _) = with_file(name, 10, |_| json("{}"));
        let (registry, _) = open(&config(&uri));
        let error = registry.artifacts(&version(), 10).await.unwrap_err();
        let text = error.in_full();
        assert!(!error.is_transient() && text.contains(&format!("{name:?}")), "{text}");
    }
    // A folder that contains itself.
    let (uri, _) = serve(|head, _| match head.asks("get-download-uri") {
        true => json(r#"{"artifact_uri": "mlflow-artifacts:/1/x"}"#),
        false => json(r#"{"files": [{"path": "again", "is_dir": true}]}"#),
    });
    let error = open(&config(&uri)).0.artifacts(&version(), 10).await.unwrap_err();
    assert!(!error.is_transient() && error.in_full().contains("too deep"), "{}", error.in_full());
    let (uri, _) = serve(|_, _| json(r#"{"artifact_uri": "mlflow-artifacts:/1/../../2"}"#));
    let error = open(&config(&uri)).0.artifacts(&version(), 10).await.unwrap_err();
    assert!(error.in_full().contains("1/../../2"), "{}", error.in_full());
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_and_no_secret_is_repeated() {
    let refused = |config: &MlflowConfig| {
        let error = MlflowRegistry::open(config, None, LinkHealth::new(Link::Mlflow)).unwrap_err();
        assert!(!error.is_transient());
        error.in_full()
    };
    let text = refused(&config("http://box-1:hunter2@mlflow:5000"));
    assert!(text.contains("MLFLOW_TRACKING_USERNAME") && !text.contains("hunter2"), "{text}");
    for uri in ["", "mlflow:5000", "file:///mlruns", "http://", "http://h/?a=b", "databricks"] {
        let text = refused(&config(uri));
        assert!(text.contains(&format!("{uri:?}")), "{text}");
    }
    let text = refused(&MlflowConfig { token: Secret::new("hunter2\n"), ..config("http://h") });
    assert!(text.contains("MLFLOW_TRACKING_TOKEN") && !text.contains("hunter2"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    for content in [None, Some("no certificate")] {
        content.inspect(|content| std::fs::write(&file, content).unwrap());
        let text = refused(&MlflowConfig { ca_file: Some(file.clone()), ..config("https://h") });
        assert!(text.contains("ca.pem"), "{text}");
    }
    let shown = format!("{:?}", MlflowConfig { token: Secret::new("hunter3"), ..config("http://h") });
    assert!(!shown.contains("hunter"), "{shown}");
}

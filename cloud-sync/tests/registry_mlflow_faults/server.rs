//! A server on loopback with the responses of a test, and a registry that uses it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloud_sync::error::{Link, SyncError};
use cloud_sync::health::LinkHealth;
use cloud_sync::registry::{MlflowConfig, MlflowRegistry, ModelRegistry, ModelVersion};
use cloud_sync::secret::Secret;

/// The head of a request.
#[derive(Clone, Debug)]
pub(crate) struct Head(pub(crate) String);

impl Head {
    pub(crate) fn asks(&self, call: &str) -> bool {
        self.0.lines().next().unwrap().contains(call)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

pub(crate) type Requests = Arc<Mutex<Vec<Head>>>;

/// A server that responds to each request with `answer` of it and of the number of requests before, and closes the
/// connection. Returns its URI, and the requests so far.
pub(crate) fn serve(answer: impl Fn(&Head, usize) -> Vec<u8> + Send + Sync + 'static) -> (String, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let requests = Requests::default();
    let (seen, answer) = (requests.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (seen, answer) = (seen.clone(), answer.clone());
            std::thread::spawn(move || one(stream.unwrap(), &seen, &*answer));
        }
    });
    (uri, requests)
}

fn one(mut stream: TcpStream, seen: &Requests, answer: &dyn Fn(&Head, usize) -> Vec<u8>) {
    let mut head = String::new();
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        match line.unwrap_or_default() {
            line if line.is_empty() => break,
            line => head = head + &line + "\n",
        }
    }
    if head.is_empty() {
        return;
    }
    let head = Head(head);
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(head.clone());
        seen.len() - 1
    };
    // The client may have gone.
    let _ = stream.write_all(&answer(&head, before));
}

pub(crate) fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

pub(crate) fn json(body: &str) -> Vec<u8> {
    reply("200 OK", "Content-Type: application/json\r\n", body.as_bytes())
}

pub(crate) const PAGE: &[u8] = b"<!doctype html><html><title>Sign in</title></html>";
pub(crate) const VERSION: &str = r#"{"model_version": {"name": "fish", "version": "3", "source": "mlflow-artifacts:/1/x",
    "tags": [{"key": "a", "value": "b"}], "aliases": ["champion"], "creation_timestamp": "1700000000000"}}"#;

pub(crate) fn page(status: &str) -> Vec<u8> {
    reply(status, "Content-Type: text/html\r\n", PAGE)
}

/// A server whose version 3 of `fish` has one file; `file` responds to requests for it.
pub(crate) fn with_file(
    name: &'static str,
    listed: usize,
    file: impl Fn(&Head) -> Vec<u8> + Send + Sync + 'static,
) -> (String, Requests) {
    serve(move |head, _| {
        if head.asks("get-download-uri") {
            json(r#"{"artifact_uri": "mlflow-artifacts:/1/x"}"#)
        } else if head.asks("artifacts?path=") {
            json(&format!(r#"{{"files": [{{"path": {name:?}, "is_dir": false, "file_size": {listed}}}]}}"#))
        } else {
            file(head)
        }
    })
}

pub(crate) fn open(config: &MlflowConfig) -> (MlflowRegistry, LinkHealth) {
    let health = LinkHealth::new(Link::Mlflow);
    (MlflowRegistry::open(config, None, health.clone()).unwrap(), health)
}

pub(crate) fn config(uri: &str) -> MlflowConfig {
    MlflowConfig {
        user: Some("box-1".into()),
        password: Secret::new("hunter2"),
        timeout: Duration::from_secs(20),
        ..MlflowConfig::new(uri)
    }
}

pub(crate) async fn resolve(
    registry: &MlflowRegistry,
    reference: &str,
) -> Result<Option<ModelVersion>, SyncError> {
    registry.resolve(&reference.parse().unwrap()).await
}

pub(crate) fn version() -> ModelVersion {
    ModelVersion {
        name: "fish".into(),
        version: "3".into(),
        aliases: Vec::new(),
        tags: Default::default(),
        source: String::new(),
        created: None,
    }
}

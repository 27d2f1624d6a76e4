//! The registry in MLflow: the contract on a current server and on an old one, with models registered by its own
//! client.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "contract/registry.rs"]
mod contract;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloud_sync::blob::{S3Config, S3Store};
use cloud_sync::error::Link;
use cloud_sync::health::LinkHealth;
use cloud_sync::registry::{MlflowConfig, MlflowRegistry, ModelRegistry};
use contract::{Harness, MLMODEL, content, find, folder};
use serde_json::{Value, json};
use test_services::{Mlflow, Services, shared_with_mlflow};

/// A separate model on a server; with an S3 client, artifacts are read from S3.
struct OnServer {
    server: &'static Mlflow,
    s3: Option<Arc<S3Store>>,
    name: String,
}

impl OnServer {
    fn new(server: &'static Mlflow, s3: Option<Arc<S3Store>>) -> Self {
        Self { server, s3, name: format!("fish-{}", ulid::Ulid::generate()) }
    }

    /// Runs a step in MLflow's own client.
    async fn client(&self, step: Value) -> Value {
        let (server, s3) = (self.server, shared_with_mlflow().s3());
        let run = move || {
            let mut child = Command::new(&server.python)
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mlflow_client.py"))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("GIT_PYTHON_REFRESH", "quiet")
                .env("MLFLOW_DISABLE_TELEMETRY", "true")
                .env("MLFLOW_TRACKING_URI", &server.tracking_uri)
                .env("MLFLOW_S3_ENDPOINT_URL", &s3.endpoint)
                .env("AWS_SHARED_CREDENTIALS_FILE", &s3.credentials_file)
                .env("AWS_DEFAULT_REGION", &s3.region)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            writeln!(child.stdin.take().unwrap(), "{step}").unwrap();
            let done = child.wait_with_output().unwrap();
            assert!(done.status.success(), "{step}: {}", String::from_utf8_lossy(&done.stderr));
            serde_json::from_slice(&done.stdout).unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    fn config(&self) -> MlflowConfig {
        MlflowConfig::new(&self.server.tracking_uri)
    }
}

fn versions_of(answer: &Value) -> Vec<String> {
    // Numbers from one client, strings from another.
    let text = |version: &Value| version.as_str().map_or_else(|| version.to_string(), str::to_owned);
    answer.as_array().unwrap().iter().map(text).collect()
}

/// The box's own S3 client, which has another bucket than MLflow.
fn s3_config() -> S3Config {
    let s3 = shared_with_mlflow().s3();
    S3Config {
        endpoint: Some(s3.endpoint.clone()),
        region: Some(s3.region.clone()),
        credentials_file: Some(s3.credentials_file.clone()),
        ..S3Config::new("somewhere-else-of-ours")
    }
}

async fn s3() -> Option<Arc<S3Store>> {
    Some(Arc::new(S3Store::open(s3_config(), LinkHealth::new(Link::S3)).await.unwrap()))
}

/// Everything but the location.
macro_rules! harness {
    ($name:ident, $server:ident, $s3:expr, goes on: $goes_on:expr) => {
        struct $name(OnServer);

        #[async_trait]
        impl Harness for $name {
            async fn new() -> Self {
                Self(OnServer::new(shared_with_mlflow().$server(), $s3))
            }

            fn name(&self) -> String {
                self.0.name.clone()
            }

            async fn register(&self, folder: &Path, count: usize) -> Vec<String> {
                let step = json!({"step": "register", "name": self.0.name, "folder": folder, "count": count});
                versions_of(&self.0.client(step).await)
            }

            async fn alias(&self, alias: &str, version: &str) {
                let step = json!({"step": "alias", "name": self.0.name, "alias": alias, "version": version});
                self.0.client(step).await;
            }

            fn goes_on(&self) -> bool {
                $goes_on
            }

            fn open(&self) -> [Arc<dyn ModelRegistry>; 2] {
                [self.0.open().0, self.0.open().0]
            }

            async fn reports(
                &self,
                experiment: &str,
            ) -> Vec<(BTreeMap<String, f64>, BTreeMap<String, String>)> {
                self.0.reports(experiment).await
            }
        }
    };
}

impl OnServer {
    fn open(&self) -> (Arc<dyn ModelRegistry>, LinkHealth) {
        let health = LinkHealth::new(Link::Mlflow);
        let registry = MlflowRegistry::open(&self.config(), self.s3.clone(), health.clone()).unwrap();
        (Arc::new(registry), health)
    }

    async fn reports(&self, experiment: &str) -> Vec<(BTreeMap<String, f64>, BTreeMap<String, String>)> {
        let runs = self.client(json!({"step": "runs", "name": experiment})).await;
        let parts = |run: &Value| {
            assert_eq!((&run["status"], &run["params"]["model"]), (&json!("FINISHED"), &json!("fish/3")));
            assert_eq!(run["name"], run["tags"]["node"]);
            assert_eq!(run["end"].as_u64().unwrap() - run["begin"].as_u64().unwrap(), 3_600_000);
            let metrics = serde_json::from_value(run["metrics"].clone()).unwrap();
            (metrics, serde_json::from_value(run["tags"].clone()).unwrap())
        };
        runs.as_array().unwrap().iter().map(parts).collect()
    }
}

/// A current server, whose artifacts are read through its proxy.
mod current {
    use super::*;

    // Its proxy supports neither ranges nor ETags.
    harness!(Current, mlflow, None, goes on: false);
    contract::suite!(Current);
}

/// An old one without a proxy: artifacts are read from S3.
mod old {
    use super::*;

    harness!(Old, mlflow29, s3().await, goes on: true);
    contract::suite!(Old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logged_model_of_mlflow_3_is_found_through_its_id() {
    let own = OnServer::new(shared_with_mlflow().mlflow(), None);
    let model = content(100_000);
    let dir =
        folder(&[("MLmodel", MLMODEL.as_bytes()), ("model.onnx", &model), ("extra/labels.txt", b"cod\n")]);
    let step = json!({"step": "register_logged", "name": own.name, "folder": dir.path()});
    let version = versions_of(&own.client(step).await).remove(0);
    let (registry, health) = own.open();
    let version = find(&registry, &format!("{}/{version}", own.name)).await.unwrap();
    assert!(version.source.starts_with("models:/m-"), "{version:?}");
    let listed = registry.artifacts(&version, 10).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(listed, ["MLmodel", "extra/labels.txt", "model.onnx"]);
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("model.onnx");
    registry.fetch(&version, "model.onnx", &to, 1 << 20).await.unwrap();
    assert!(std::fs::read(to).unwrap() == model);
    assert_eq!(health.state().up, Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_whose_source_names_a_run_is_found() {
    let services = shared_with_mlflow();
    for (server, s3) in
        [(services.mlflow(), None), (services.mlflow29(), s3().await), (services.mlflow29(), None)]
    {
        let own = OnServer::new(server, s3);
        let model = content(100_000);
        let dir = folder(&[("MLmodel", MLMODEL.as_bytes()), ("extra/model.onnx", &model)]);
        let step = json!({"step": "register_run", "name": own.name, "folder": dir.path()});
        let version = versions_of(&own.client(step).await).remove(0);
        let (registry, _) = own.open();
        let version = find(&registry, &format!("{}/{version}", own.name)).await.unwrap();
        let listed =
            registry.artifacts(&version, 10).await.unwrap_or_else(|error| panic!("{}", error.in_full()));
        let listed: Vec<_> = listed.iter().map(|found| found.path.as_str()).collect();
        assert_eq!(listed, ["MLmodel", "extra/model.onnx"]);
        let to = tempfile::tempdir().unwrap();
        let to = to.path().join("model.onnx");
        let fetched = registry.fetch(&version, "extra/model.onnx", &to, 1 << 20).await;
        fetched.unwrap_or_else(|error| panic!("{}", error.in_full()));
        assert!(std::fs::read(to).unwrap() == model);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_s3_refuses_the_server_reads_for_the_box() {
    let wrong = tempfile::tempdir().unwrap();
    let keys = wrong.path().join("keys");
    std::fs::write(&keys, "[default]\naws_access_key_id = AKIANOBODY\naws_secret_access_key = x\n").unwrap();
    let refused = S3Config { credentials_file: Some(keys), ..s3_config() };
    let refused = S3Store::open(refused, LinkHealth::new(Link::S3)).await.unwrap();
    let mut own = OnServer::new(shared_with_mlflow().mlflow29(), None);
    let dir = folder(&[("MLmodel", MLMODEL.as_bytes()), ("a/b/model.onnx", &content(50_000))]);
    let step = json!({"step": "register", "name": own.name, "folder": dir.path()});
    own.client(step).await;
    for s3 in [None, Some(Arc::new(refused))] {
        own.s3 = s3;
        let (registry, _) = own.open();
        let version = find(&registry, &format!("{}/1", own.name)).await.unwrap();
        assert!(version.source.starts_with("s3://"), "{version:?}");
        let listed =
            registry.artifacts(&version, 10).await.unwrap_or_else(|error| panic!("{}", error.in_full()));
        let listed: Vec<_> = listed.iter().map(|found| (found.path.as_str(), found.bytes)).collect();
        let expected = [("MLmodel", Some(MLMODEL.len() as u64)), ("a/b/model.onnx", Some(50_000))];
        assert_eq!(listed, expected);
        let to = tempfile::tempdir().unwrap();
        let to = to.path().join("model.onnx");
        registry.fetch(&version, "a/b/model.onnx", &to, 50_000).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == content(50_000));
        let error = registry.fetch(&version, "a/b/model.onnx", &to, 49_999).await.unwrap_err();
        assert!(error.in_full().contains("49999 are allowed"), "{}", error.in_full());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_in_s3_is_read_from_s3() {
    let mut own = OnServer::new(shared_with_mlflow().mlflow29(), None);
    let dir = folder(&[("a/model.onnx", b"model")]);
    own.client(json!({"step": "register", "name": own.name, "folder": dir.path()})).await;
    let version = find(&own.open().0, &format!("{}/1", own.name)).await.unwrap();
    let opened = async || {
        let health = LinkHealth::new(Link::S3);
        let store = S3Store::open(s3_config(), health.clone()).await.unwrap();
        (Some(Arc::new(store)), health)
    };
    let (store, health) = opened().await;
    own.s3 = store;
    assert_eq!(own.open().0.artifacts(&version, 10).await.unwrap().len(), 1);
    assert_eq!(health.state().up, Some(true));
    let (store, health) = opened().await;
    own.s3 = store;
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("model.onnx");
    own.open().0.fetch(&version, "a/model.onnx", &to, 100).await.unwrap();
    assert_eq!(
        (health.state().up, std::fs::read(&to).unwrap().as_slice()),
        (Some(true), b"model".as_slice())
    );
}

#[tokio::test]
async fn with_tls_the_authority_decides() {
    // Any server with TLS will do for the handshake.
    let services = Services::own(&["redis"]);
    let redis = services.redis();
    let tls = MlflowConfig {
        timeout: Duration::from_secs(20),
        ..MlflowConfig::new(format!("https://{}:{}", redis.host, redis.tls_port))
    };
    let failed = async |config: &MlflowConfig| {
        let registry = MlflowRegistry::open(config, None, LinkHealth::new(Link::Mlflow)).unwrap();
        let error = registry.resolve(&"fish/1".parse().unwrap()).await.unwrap_err();
        assert!(error.is_transient(), "{}", error.in_full());
        error.in_full()
    };
    let text = failed(&tls).await;
    assert!(text.contains("its certificate is not trusted"), "{text}");
    let text = failed(&MlflowConfig { ca_file: Some(redis.ca_file.clone()), ..tls }).await;
    assert!(!text.contains("certificate"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_is_used_again() {
    let services = Services::own(&["s3", "mlflow29"]);
    let health = LinkHealth::new(Link::Mlflow);
    let config = MlflowConfig {
        timeout: Duration::from_secs(10),
        ..MlflowConfig::new(&services.mlflow29().tracking_uri)
    };
    let registry = MlflowRegistry::open(&config, None, health.clone()).unwrap();
    let reference = "fish/1".parse().unwrap();
    assert_eq!(registry.resolve(&reference).await.unwrap(), None);
    assert_eq!(health.state().up, Some(true));
    services.pause("mlflow29");
    assert!(registry.resolve(&reference).await.unwrap_err().is_transient());
    services.resume("mlflow29");
    services.kill("mlflow29");
    assert!(registry.resolve(&reference).await.unwrap_err().is_transient());
    assert_eq!(health.state().up, Some(false));
    services.start("mlflow29");
    assert_eq!(registry.resolve(&reference).await.unwrap(), None);
    assert_eq!(health.state().up, Some(true));
}

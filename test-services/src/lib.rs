//! Real servers for tests: those of the whole test run, or private ones that a test may stop.
//!
//! `scripts/services` does the work. `WEIR_SERVICES` names the `services.json` of a running instance (`scripts/test`
//! starts one); without it a test process starts its own, and the instance ends with the process. A server that does
//! not start is a failed test, never a skipped one.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "tests are the only callers")]

pub mod clock;
pub mod gpu;
pub mod tls;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde::Deserialize;
use tempfile::TempDir;

/// The broker.
#[derive(Debug, Clone, Deserialize)]
pub struct Kafka {
    /// `host:port` of the SASL_SSL listener.
    pub bootstrap: String,
    /// The user, who logs in with SCRAM-SHA-512.
    pub user: String,
    password_file: PathBuf,
    /// The authority that signed the broker's certificate.
    pub ca_file: PathBuf,
    /// The topic of batch work.
    pub requests_topic: String,
    /// The topic of results.
    pub results_topic: String,
    /// Configuration of Kafka's own tools with the login.
    pub client_properties: PathBuf,
}

/// The Redis server.
#[derive(Debug, Clone, Deserialize)]
pub struct Redis {
    /// Its address.
    pub host: String,
    /// The unencrypted port.
    pub port: u16,
    /// The encrypted port.
    pub tls_port: u16,
    password_file: PathBuf,
    /// The authority that signed its certificate.
    pub ca_file: PathBuf,
}

/// The S3 server.
#[derive(Debug, Clone, Deserialize)]
pub struct S3 {
    /// Its URL.
    pub endpoint: String,
    /// Its region.
    pub region: String,
    /// An existing bucket.
    pub bucket: String,
    access_key_file: PathBuf,
    secret_key_file: PathBuf,
    /// The keys in the format of AWS's tools (`AWS_SHARED_CREDENTIALS_FILE`).
    pub credentials_file: PathBuf,
}

/// An MLflow server.
#[derive(Debug, Clone, Deserialize)]
pub struct Mlflow {
    /// Its URI.
    pub tracking_uri: String,
    /// Location of its artifacts in S3.
    pub artifacts: String,
    /// A Python with its client.
    pub python: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Started {
    kafka: Option<Kafka>,
    redis: Option<Redis>,
    s3: Option<S3>,
    mlflow: Option<Mlflow>,
    mlflow29: Option<Mlflow>,
}

/// Running servers.
#[derive(Debug)]
pub struct Services {
    dir: PathBuf,
    started: Started,
    /// The instance that is stopped and removed when this is dropped; none for the shared ones.
    own: Option<TempDir>,
}

/// The servers of the whole test run. Use unique names on them, and never stop one.
pub fn shared() -> &'static Services {
    static SHARED: OnceLock<Services> = OnceLock::new();
    // Never dropped: its watcher stops it when this process has ended.
    SHARED.get_or_init(|| Services::of_the_run().unwrap_or_else(|| Services::own(&["kafka", "redis", "s3"])))
}

/// The same, with the MLflow servers and their dependencies. They take longer to start, so they are separate.
pub fn shared_with_mlflow() -> &'static Services {
    static SHARED: OnceLock<Services> = OnceLock::new();
    SHARED.get_or_init(|| {
        let of_the_run = Services::of_the_run().filter(|run| run.started.mlflow29.is_some());
        of_the_run.unwrap_or_else(|| Services::own(&["s3", "mlflow", "mlflow29"]))
    })
}

impl Services {
    fn of_the_run() -> Option<Self> {
        let file = PathBuf::from(std::env::var_os("WEIR_SERVICES")?);
        let dir = file.parent().expect("WEIR_SERVICES names a file in a folder").to_path_buf();
        Some(Self { started: read(&file), dir, own: None })
    }

    /// Starts servers for one test: of `kafka`, `redis`, `s3`, `mlflow`, `mlflow29`. They end when the value is
    /// dropped, or when the process ends in any way.
    pub fn own(only: &[&str]) -> Self {
        let own = tempfile::Builder::new().prefix("weir-services-").tempdir().unwrap();
        let dir = own.path().join("run");
        let owner = std::process::id().to_string();
        let only = only.join(",");
        control(&dir, &["up", "--ports", "free", "--only", &only, "--redis-tls", "--owner", &owner]);
        Self { started: read(&dir.join("services.json")), dir, own: Some(own) }
    }

    /// The instance's directory, for `scripts/services ... --dir`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The broker; panics when it was not started.
    pub fn kafka(&self) -> &Kafka {
        self.started.kafka.as_ref().expect("kafka was not started")
    }

    /// The Redis server; panics when it was not started.
    pub fn redis(&self) -> &Redis {
        self.started.redis.as_ref().expect("redis was not started")
    }

    /// The S3 server; panics when it was not started.
    pub fn s3(&self) -> &S3 {
        self.started.s3.as_ref().expect("s3 was not started")
    }

    /// The current MLflow, which has an artifact proxy; panics when it was not started.
    pub fn mlflow(&self) -> &Mlflow {
        self.started.mlflow.as_ref().expect("mlflow was not started")
    }

    /// MLflow 2.9, whose clients use S3 themselves; panics when it was not started.
    pub fn mlflow29(&self) -> &Mlflow {
        self.started.mlflow29.as_ref().expect("mlflow29 was not started")
    }

    /// Stops one server cleanly; it can be started again with its data, on its port.
    pub fn stop(&self, name: &str) {
        self.only_own();
        control(&self.dir, &["stop", name]);
    }

    /// Kills one server with SIGKILL.
    pub fn kill(&self, name: &str) {
        self.only_own();
        control(&self.dir, &["stop", name, "--kill"]);
    }

    /// Freezes one: its port stays open and nothing responds, as when a machine hangs.
    pub fn pause(&self, name: &str) {
        self.only_own();
        control(&self.dir, &["pause", name]);
    }

    /// Resumes a frozen one.
    pub fn resume(&self, name: &str) {
        self.only_own();
        control(&self.dir, &["resume", name]);
    }

    /// Starts one again and waits until it responds.
    pub fn start(&self, name: &str) {
        self.only_own();
        control(&self.dir, &["start", name]);
    }

    fn only_own(&self) {
        assert!(self.own.is_some(), "the shared servers stay up: start your own with Services::own");
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if self.own.is_some() {
            control(&self.dir, &["down"]);
        }
    }
}

impl Kafka {
    /// The user's password.
    pub fn password(&self) -> String {
        secret(&self.password_file)
    }

    /// The variables of a deployment for this broker and these topics.
    pub fn env(&self, requests_topic: &str, results_topic: &str) -> Vec<(&'static str, String)> {
        vec![
            ("KAFKA_BOOTSTRAP_SERVERS", self.bootstrap.clone()),
            ("KAFKA_USER", self.user.clone()),
            ("KAFKA_PASSWORD", self.password()),
            ("KAFKA_CA_FILE", self.ca_file.display().to_string()),
            ("KAFKA_TOPIC", requests_topic.to_owned()),
            ("KAFKA_RESULTS_TOPIC", results_topic.to_owned()),
        ]
    }

    /// The settings with which a librdkafka client connects and logs in.
    pub fn client_settings(&self) -> [(&'static str, String); 6] {
        [
            ("bootstrap.servers", self.bootstrap.clone()),
            ("security.protocol", "SASL_SSL".to_owned()),
            ("sasl.mechanism", "SCRAM-SHA-512".to_owned()),
            ("sasl.username", self.user.clone()),
            ("sasl.password", self.password()),
            ("ssl.ca.location", self.ca_file.display().to_string()),
        ]
    }
}

impl Redis {
    /// The password of the default user.
    pub fn password(&self) -> String {
        secret(&self.password_file)
    }

    /// The variables of a deployment.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("REDIS_HOST", self.host.clone()),
            ("REDIS_PORT", self.port.to_string()),
            ("REDIS_PASSWORD", self.password()),
        ]
    }
}

impl S3 {
    /// The id of the access key.
    pub fn access_key(&self) -> String {
        secret(&self.access_key_file)
    }

    /// The secret of the access key.
    pub fn secret_key(&self) -> String {
        secret(&self.secret_key_file)
    }

    /// The variables of a deployment.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL_S3", self.endpoint.clone()),
            ("AWS_REGION", self.region.clone()),
            ("AWS_ACCESS_KEY_ID", self.access_key()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key()),
            ("S3_BUCKET", self.bucket.clone()),
        ]
    }
}

/// The program that starts and stops servers.
pub fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/services")
}

fn secret(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

fn read(file: &Path) -> Started {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn control(dir: &Path, arguments: &[&str]) {
    let (command, rest) = arguments.split_first().expect("a command");
    let done = Command::new(program()).arg(command).arg("--dir").arg(dir).args(rest).output().unwrap();
    let words = String::from_utf8_lossy(&done.stderr);
    // A drop must not panic while another panic is under way.
    if !done.status.success() && !std::thread::panicking() {
        panic!("scripts/services {}: {}\n{words}", arguments.join(" "), done.status);
    }
}

/// The directory of downloads and build output, by the same rule as `scripts/lib/env.sh`.
pub fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("WEIR_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("weir")))
        .or_else(|| Some(set("HOME")?.join(".cache/weir")))
        .expect("neither WEIR_CACHE, XDG_CACHE_HOME nor HOME is set")
}

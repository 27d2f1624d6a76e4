//! Rollouts from real MLflow servers, a current one with its artifact proxy and an old one on S3, with MLflow's client as the
//! fleet manager.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::models::{
    Colours, Registry, model, picture, start, start_in, until, until_rejected, until_serving, weir_models,
};
use test_services::{Mlflow, Services, shared_with_mlflow};

/// A separate model on a server.
struct Fleet<'a> {
    services: &'a Services,
    server: &'a Mlflow,
    name: String,
    /// Whether the node has keys of the object store.
    s3: bool,
}

impl<'a> Fleet<'a> {
    fn new(services: &'a Services, server: &'a Mlflow, s3: bool) -> Self {
        Self { services, server, name: format!("fish-{}", ulid::Ulid::generate()), s3 }
    }

    /// Runs a step with MLflow's client.
    fn client(&self, step: &Value) -> Value {
        let (server, s3) = (self.server, self.services.s3());
        let mut child = Command::new(&server.python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../cloud-sync/tests/mlflow_client.py"))
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
    }

    fn register(&self, folder: &Path) -> String {
        let made = self.client(&json!({"step": "register", "name": self.name, "folder": folder, "count": 1}));
        let version = &made[0];
        version.as_str().map_or_else(|| version.to_string(), str::to_owned)
    }

    fn alias(&self, version: &str) {
        self.client(&json!({"step": "alias", "name": self.name, "alias": "champion", "version": version}));
    }

    /// The state with which this node has tagged a version.
    fn state(&self, version: &str) -> Option<String> {
        let tags = self.client(&json!({"step": "tags", "name": self.name, "version": version}));
        Some(tags["weir.dock-3.state"].as_str()?.to_owned())
    }

    fn until_tagged(&self, version: &str, what: &str) {
        support::load::wait_until(&format!("{version} tagged {what}"), || {
            self.state(version).is_some_and(|state| state.starts_with(what))
        });
    }

    /// The deployment's variables.
    fn env(&self) -> Vec<(String, String)> {
        let mut env = vec![
            ("MLFLOW_TRACKING_URI", self.server.tracking_uri.clone()),
            ("WEIR__MODEL__FOLLOW", format!("{}@champion", self.name)),
            ("WEIR__MODEL__NAME", "fish".to_owned()),
            ("WEIR__REGISTRY__POLL_INTERVAL", "200ms".to_owned()),
            ("WEIR__NODE__NAME", "dock-3".to_owned()),
            ("WEIR__ADMIN__TOKEN", support::models::TOKEN.to_owned()),
        ];
        if self.s3 {
            env.extend(self.services.s3().env());
            env.push(("WEIR__S3__PREFIX", self.name.to_lowercase()));
        }
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// From the first version to a rollback, on one server.
fn a_fleet_is_led_from_mlflow(fleet: &Fleet<'_>) {
    let bundles = Registry::new();
    bundles.publish_fish("1", "first");
    bundles.publish_fish("2", "second");
    let first = fleet.register(&bundles.version("fish", "1"));
    fleet.alias(&first);
    let env = fleet.env();
    let daemon = start(&env, &[]);
    let named = |version: &str| format!("{}/{version}", fleet.name);
    until_serving(&daemon, "fish", &named(&first));
    fleet.until_tagged(&first, "serving");
    let (photo, label) = support::sample();
    let answer = daemon.post("/predict", &[], &photo).json();
    assert_eq!((&answer["species"], &answer["model"]["version"]), (&json!(label), &json!("first")));

    let second = fleet.register(&bundles.version("fish", "2"));
    fleet.alias(&second);
    until_serving(&daemon, "fish", &named(&second));
    fleet.until_tagged(&second, "serving");
    fleet.until_tagged(&first, "replaced by");

    // An invalid version, whose reason the fleet manager sees.
    let bad = bundles.publish_colours("3", &Colours { golden: "blue", ..Colours::default() });
    let bad = fleet.register(&bad);
    fleet.alias(&bad);
    let reason = until_rejected(&daemon, "fish", &named(&bad));
    assert!(reason.contains("golden case"), "{reason}");
    fleet.until_tagged(&bad, "rejected: golden case");
    assert_eq!(model(&daemon, "fish")["serving"], named(&second).as_str());
    let (ok, text) = weir_models(&daemon, &env, &["show", "fish"]);
    assert!(ok && text.contains("dock-3: rejected: golden case") && text.contains("champion"), "{text}");

    // A plain ONNX model without the required tags is rejected with their names; with the tags it serves.
    let plain = tempfile::tempdir().unwrap();
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("inference/testdata/models/colours.onnx");
    std::fs::copy(graph, plain.path().join("model.onnx")).unwrap();
    let mlmodel = "flavors:\n  onnx:\n    data: model.onnx\n    onnx_version: 1.16.0\n";
    std::fs::write(plain.path().join("MLmodel"), mlmodel).unwrap();
    let onnx = fleet.register(plain.path());
    fleet.alias(&onnx);
    let reason = until_rejected(&daemon, "fish", &named(&onnx));
    assert!(reason.contains("weir.labels") && reason.contains("weir.preprocess"), "{reason}");
    for (key, value) in
        [("weir.labels", "red,green,blue"), ("weir.preprocess", "resize=8,crop=8,mean=127,std=128")]
    {
        fleet
            .client(&json!({"step": "tag", "name": fleet.name, "version": onnx, "key": key, "value": value}));
    }
    let (ok, text) = weir_models(&daemon, &env, &["reload", "fish"]);
    assert!(ok, "{text}");
    until_serving(&daemon, "fish", &named(&onnx));
    let seen = daemon.post("/predict", &[], &picture([10, 10, 220], 1)).json();
    assert_eq!(seen["species"], "blue");

    // Rolled back by the alias.
    fleet.alias(&second);
    until_serving(&daemon, "fish", &named(&second));
    // The active version is on disk; the first of four was pruned and can be downloaded again.
    for (version, downloaded) in [(&second, false), (&first, true)] {
        let (ok, text) = weir_models(&daemon, &env, &["pull", &named(version), "--json"]);
        assert!(ok && text.contains(&format!("\"downloaded\": {downloaded}")), "{version}: {text}");
    }
    let (ok, text) = weir_models(&daemon, &env, &["pull", &named("99")]);
    assert!(!ok && text.contains("no such model, alias or version"), "{text}");
}

#[test]
fn a_fleet_is_led_from_a_current_server_through_its_proxy() {
    let services = shared_with_mlflow();
    a_fleet_is_led_from_mlflow(&Fleet::new(services, services.mlflow(), false));
}

#[test]
fn a_fleet_is_led_from_an_old_server_and_models_come_from_s3() {
    let services = shared_with_mlflow();
    a_fleet_is_led_from_mlflow(&Fleet::new(services, services.mlflow29(), true));
}

#[test]
fn predictions_are_reported_as_a_run_of_the_monitoring_experiment() {
    let services = shared_with_mlflow();
    let fleet = Fleet::new(services, services.mlflow(), false);
    let experiment = format!("seen-{}", fleet.name);
    let env = fleet.env();
    let monitoring = [
        ("WEIR__MONITORING__ENABLED", "true"),
        ("WEIR__MONITORING__INTERVAL", "2s"),
        ("WEIR__MONITORING__EXPERIMENT", experiment.as_str()),
    ];
    let daemon = start(&env, &monitoring);
    let (photo, label) = support::sample();
    assert_eq!(daemon.post("/predict", &[], &photo).status, 200);
    let mut found = Value::Null;
    support::load::wait_until("the node has reported", || {
        let runs = fleet.client(&json!({"step": "runs", "name": experiment}));
        // Metrics, parameters and status are written by separate calls; the status is the last.
        let complete = |run: &&Value| run["metrics"]["images"] == 1.0 && run["status"] == "FINISHED";
        found = runs.as_array().unwrap().iter().find(complete).cloned().unwrap_or(Value::Null);
        found != Value::Null
    });
    assert_eq!(found["metrics"][format!("species.{label}")], 1.0, "{found:#}");
    assert_eq!(found["params"]["node"], "dock-3");
    assert!(found["metrics"]["population_stability_index"].is_number(), "{found:#}");
}

#[test]
fn an_unavailable_or_wrong_server_changes_nothing_and_a_restart_does_not_need_it() {
    let services = Services::own(&["s3", "mlflow29"]);
    let fleet = Fleet::new(&services, services.mlflow29(), true);
    let bundles = Registry::new();
    bundles.publish_fish("1", "first");
    let first = fleet.register(&bundles.version("fish", "1"));
    fleet.alias(&first);
    let mut env = fleet.env();
    env.push(("WEIR__REGISTRY__TIMEOUT".to_owned(), "1s".to_owned()));
    let daemon = start(&env, &[]);
    let named = format!("{}/{first}", fleet.name);
    until_serving(&daemon, "fish", &named);
    // Frozen: it accepts connections but does not respond.
    services.pause("mlflow29");
    until(&daemon, "fish", "missing the registry", |model| model["error"].is_string());
    let (photo, _) = support::sample();
    assert_eq!(daemon.post("/predict", &[], &photo).status, 200);
    services.resume("mlflow29");
    until(&daemon, "fish", "reaching the registry", |model| model["error"].is_null());
    services.kill("mlflow29");
    until(&daemon, "fish", "missing the registry", |model| model["error"].is_string());
    assert_eq!(daemon.get("/health").json()["links"]["mlflow"]["status"], "down");
    // A reboot without it, and without S3.
    services.kill("s3");
    let daemon = start_in(daemon.kill(), &env, &[]);
    assert_eq!(model(&daemon, "fish")["serving"], named.as_str());
    assert_eq!(daemon.post("/predict", &[], &photo).json()["model"]["version"], "first");
    drop(daemon);

    // Another server responds there, which is not MLflow.
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = web.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in web.incoming().flatten() {
            let mut stream: std::net::TcpStream = stream;
            let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
            let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\nconnection: close\r\n\r\n<html></html>";
            let _ = stream.write_all(page.as_bytes());
        }
    });
    env[0].1 = format!("http://{address}");
    let daemon = start(&env, &[]);
    let error =
        until(&daemon, "fish", "reporting that this is not a registry", |model| model["error"].is_string());
    assert!(error["error"].as_str().unwrap().contains("a web page, not MLflow's API"), "{error:#}");
    assert_eq!(daemon.post("/predict", &[], &photo).status, 200);
}

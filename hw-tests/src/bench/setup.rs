//! Environment of the benches: paths of binaries, bundles and pictures, and starting servers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::daemon::{Daemon, free_port};
use crate::frames::{self, Frame, Size};
use crate::load::{self, Client, Options, Reply, Request, Spec, Watch};

/// How long one request of a bench may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Worker processes of the peer.
pub(super) const PEER_WORKERS: usize = 2;

/// Prefixes of a deployment's variables.
const DEPLOYMENT: [&str; 5] = ["AWS_", "KAFKA_", "MLFLOW_", "REDIS_", "S3_"];

/// Paths and durations. Paths that only some benches need are checked when they are needed.
#[derive(clap::Args, Clone, Debug)]
pub struct Setup {
    /// The built `weir`; by default the one in the folder of this program.
    #[arg(long)]
    weir: Option<PathBuf>,
    /// The default (int8) model bundle.
    #[arg(long, default_value = "models/fish/1")]
    pub(super) bundle: PathBuf,
    /// The same network in fp32, as a bundle with `model.onnx`.
    #[arg(long, env = "WEIR_FP32_BUNDLE")]
    fp32_bundle: Option<PathBuf>,
    /// A folder of labelled photos: pictures and labels.csv with the columns file and label.
    #[arg(long, env = "WEIR_PHOTOS")]
    photos: Option<PathBuf>,
    /// A Python with the packages of hw-tests/peers/requirements.txt.
    #[arg(long, env = "WEIR_PEER_PYTHON")]
    peer_python: Option<PathBuf>,
    /// The peer's program.
    #[arg(long, default_value = "hw-tests/peers/fastapi_server.py")]
    peer: PathBuf,
    /// Seconds that each single measurement counts.
    #[arg(long, default_value_t = 10.0, value_parser = load::counted_seconds)]
    seconds: f64,
}

/// A server under measurement, with the folder of its data and output.
pub(super) struct Server {
    pub(super) daemon: Daemon,
    watch_children: bool,
    /// Removed with the server.
    _dir: Option<TempDir>,
}

/// The capacity in `GET /health`.
#[derive(Debug, Deserialize)]
struct Health {
    queue: Queue,
    device: Device,
}

#[derive(Debug, Deserialize)]
struct Queue {
    capacity: usize,
}

#[derive(Debug, Deserialize)]
struct Device {
    lanes: usize,
}

/// The fields of a response that benches use; the same for weir and for the peer.
#[derive(Debug, Deserialize)]
pub(super) struct Prediction {
    pub(super) species: String,
    #[serde(default)]
    pub(super) cached: bool,
}

impl Prediction {
    pub(super) fn of(reply: &Reply) -> anyhow::Result<Self> {
        let body = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == 200, "status {}: {body}", reply.status);
        serde_json::from_slice(&reply.body).with_context(|| format!("no prediction: {body}"))
    }
}

impl Setup {
    pub(super) fn weir(&self) -> anyhow::Result<PathBuf> {
        let weir = match &self.weir {
            Some(weir) => weir.clone(),
            None => std::env::current_exe()?.with_file_name("weir"),
        };
        weir.canonicalize()
            .with_context(|| format!("no weir at {}: build it, or give --weir", weir.display()))
    }

    pub(super) fn fp32_bundle(&self) -> anyhow::Result<&Path> {
        self.fp32_bundle.as_deref().context("needs the fp32 bundle: give --fp32-bundle or WEIR_FP32_BUNDLE")
    }

    pub(super) fn photos(&self) -> anyhow::Result<&Path> {
        self.photos.as_deref().context("needs labelled photos: give --photos or WEIR_PHOTOS")
    }

    pub(super) fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// A `weir serve` command on a port, with a data folder. Its working folder is the data folder, so that
    /// no weir.toml of the checkout is read.
    pub(super) fn weir_command(&self, bundle: &Path, port: u16, data: &Path) -> anyhow::Result<Command> {
        self.command("serve", bundle, port, data)
    }

    fn command(&self, name: &str, bundle: &Path, port: u16, data: &Path) -> anyhow::Result<Command> {
        let bundle = bundle.canonicalize().with_context(|| format!("no bundle at {}", bundle.display()))?;
        let mut command = Command::new(self.weir()?);
        without_deployment(&mut command);
        command.args([name, "--listen", &format!("127.0.0.1:{port}")]).arg("--data-dir").arg(data);
        command.env("WEIR__MODEL__BUNDLE", bundle).current_dir(data);
        Ok(command)
    }

    /// Starts weir on a bundle, with a new data folder, and waits until it is ready.
    pub(super) fn start_weir(&self, bundle: &Path) -> anyhow::Result<Server> {
        let dir = tempfile::tempdir()?;
        let daemon = self.start_weir_in(bundle, dir.path())?;
        Ok(Server { daemon, watch_children: false, _dir: Some(dir) })
    }

    /// The same in an existing folder, which is kept.
    pub(super) fn start_weir_in(&self, bundle: &Path, dir: &Path) -> anyhow::Result<Daemon> {
        self.start_in("serve", bundle, &[], dir)
    }

    /// `weir serve` or `weir worker` on the default bundle, with these variables and a new data folder.
    pub(super) fn start_with(&self, name: &str, variables: &[(&str, String)]) -> anyhow::Result<Server> {
        let dir = tempfile::tempdir()?;
        let daemon = self.start_in(name, &self.bundle, variables, dir.path())?;
        Ok(Server { daemon, watch_children: false, _dir: Some(dir) })
    }

    /// The same on any bundle, in an existing folder, which is kept.
    pub(super) fn start_in(
        &self,
        name: &str,
        bundle: &Path,
        variables: &[(&str, String)],
        dir: &Path,
    ) -> anyhow::Result<Daemon> {
        let port = free_port()?;
        let mut command = self.command(name, bundle, port, dir)?;
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut daemon = Daemon::start(command, port, &dir.join("weir.log"))?;
        daemon.wait_ready("/health/ready")?;
        Ok(daemon)
    }

    /// Starts the peer on the fp32 bundle's model and waits until it is ready.
    pub(super) fn start_peer(&self) -> anyhow::Result<Server> {
        let python = self.peer_python.as_deref();
        let python = python.context("needs the peer's Python: give --peer-python or WEIR_PEER_PYTHON")?;
        let (bundle, dir, port) = (self.fp32_bundle()?, tempfile::tempdir()?, free_port()?);
        ensure!(self.peer.is_file(), "no peer at {}: give --peer", self.peer.display());
        let mut command = Command::new(python);
        command.arg(&self.peer).args(["--workers", &PEER_WORKERS.to_string(), "--port", &port.to_string()]);
        command.arg("--model").arg(bundle.join("model.onnx")).arg("--labels").arg(bundle.join("labels.txt"));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut daemon = Daemon::start(command, port, &dir.path().join("peer.log"))?;
        daemon.wait_ready("/health")?;
        Ok(Server { daemon, watch_children: true, _dir: Some(dir) })
    }
}

/// Removes a deployment's variables, so that the measured process uses only the servers of its bench.
pub(crate) fn without_deployment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if DEPLOYMENT.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            command.env_remove(name);
        }
    }
}

impl Server {
    /// A client that posts to it.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Client::new(self.daemon.target("/predict"), TIMEOUT)
    }

    /// Lanes and queue: the largest number of concurrent requests.
    pub(super) fn capacity(&self) -> anyhow::Result<usize> {
        let reply = self.client()?.get("/health")?;
        let health: Health = serde_json::from_slice(&reply.body).context("GET /health")?;
        Ok(health.device.lanes + health.queue.capacity)
    }

    /// Load on it, with its process watched; callers override fields as needed.
    pub(super) fn load(&self, frames: &[Frame], unique: bool, duration: Duration) -> anyhow::Result<Spec> {
        let target = self.daemon.target("/predict");
        let options = Options { unique, ..Options::default() };
        let requests: Arc<[Request]> = load::requests(&target, frames, &options)?;
        let watch = Some(Watch { pid: self.daemon.pid(), children: self.watch_children });
        Ok(Spec { duration, watch, timeout: TIMEOUT, ..Spec::new(target, requests) })
    }
}

/// The frames that benches post.
pub(super) fn bench_frames(size: Size) -> anyhow::Result<Vec<Frame>> {
    frames::render(size, size.bench_count())
}

/// Prints a line of progress, since benches take minutes.
pub(super) fn progress(line: &str) {
    eprintln!("  {line}");
}

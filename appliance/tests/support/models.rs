//! Models for tests of rollouts: a registry in a folder, valid and invalid versions, and a daemon that
//! follows them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{Daemon, Reply, bundle, copy, weir};

/// How long a rollout may take.
const TIMEOUT: Duration = Duration::from_secs(240);
/// The admin token of the daemons.
pub const TOKEN: &str = "a-token-of-the-tests";

/// A registry in a folder.
pub struct Registry {
    pub dir: TempDir,
}

impl Registry {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// The folder of a version.
    pub fn version(&self, name: &str, version: &str) -> PathBuf {
        self.dir.path().join(name).join(version)
    }

    /// Registers a copy of the default bundle with the version `says` in its manifest.
    pub fn publish_fish(&self, version: &str, says: &str) {
        let to = self.version("fish", version);
        copy(&bundle(), &to);
        let manifest = std::fs::read_to_string(to.join("bundle.toml")).unwrap();
        let line = manifest.lines().find(|line| line.starts_with("version")).unwrap();
        let edited = manifest.replacen(line, &format!("version = \"{says}\""), 1);
        std::fs::write(to.join("bundle.toml"), edited).unwrap();
    }

    /// Registers a version of the model that classifies the dominant colour.
    pub fn publish_colours(&self, version: &str, colours: &Colours<'_>) -> PathBuf {
        let to = self.version("colours", version);
        colours.write(&to, version);
        to
    }

    /// Points an alias to a version, atomically.
    pub fn alias(&self, name: &str, alias: &str, version: &str) {
        let dir = self.dir.path().join(name).join("aliases");
        std::fs::create_dir_all(&dir).unwrap();
        let new = self.dir.path().join(".new-alias");
        std::fs::write(&new, version).unwrap();
        std::fs::rename(new, dir.join(alias)).unwrap();
    }

    /// The tags of a version.
    pub fn tags(&self, name: &str, version: &str) -> Value {
        let path = self.dir.path().join(name).join("tags").join(format!("{version}.json"));
        std::fs::read(path).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap())
    }

    /// Variables of a daemon that follows `follow` in this registry.
    pub fn env(&self, follow: &str) -> Vec<(String, String)> {
        [
            ("WEIR__REGISTRY__DIR", self.dir.path().to_str().unwrap()),
            ("WEIR__REGISTRY__POLL_INTERVAL", "100ms"),
            ("WEIR__MODEL__FOLLOW", follow),
            ("WEIR__ADMIN__TOKEN", TOKEN),
            ("WEIR__NODE__NAME", "dock-3"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }
}

/// A bundle of the small model that classifies the dominant colour of a picture.
pub struct Colours<'a> {
    /// Its graph, a file in testdata/models.
    pub model: &'a str,
    /// Its labels, in the order of the output.
    pub labels: &'a [&'a str],
    /// The expected label of the golden picture, which is red.
    pub golden: &'a str,
}

impl Default for Colours<'_> {
    fn default() -> Self {
        Self { model: "colours.onnx", labels: &["red", "green", "blue"], golden: "red" }
    }
}

impl Colours<'_> {
    /// Writes it to a folder, under a version.
    pub fn write(&self, to: &Path, version: &str) {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("inference/testdata/models");
        std::fs::create_dir_all(to.join("golden")).unwrap();
        std::fs::copy(made.join(self.model), to.join("model.onnx")).unwrap();
        std::fs::copy(made.join("red.png"), to.join("golden/red.png")).unwrap();
        std::fs::write(to.join("labels.txt"), self.labels.join("\n") + "\n").unwrap();
        let (labels, count, golden) = (self.labels, self.labels.len(), self.golden);
        let (model, picture) = (sha256_of(&to.join("model.onnx")), sha256_of(&to.join("golden/red.png")));
        let manifest = format!(
            "format = 1\nname = \"colours\"\nversion = \"{version}\"\nlabels = {labels:?}\n\
             [input]\nname = \"image\"\nshape = [0, 3, 8, 8]\n[output]\nname = \"scores\"\nshape = [0, {count}]\n\
             [preprocess]\nresize = 8\ncrop = 8\nmean = [127.0, 127.0, 127.0]\nstd = [128.0, 128.0, 128.0]\n\
             [[variant]]\nfile = \"model.onnx\"\nprecision = \"fp32\"\ninput_type = \"f32\"\ndevices = [\"cpu\"]\n\
             sha256 = \"{model}\"\n\
             [[golden]]\nfile = \"golden/red.png\"\nsha256 = \"{picture}\"\nlabel = \"{golden}\"\nmin_score = 0.5\n"
        );
        std::fs::write(to.join("bundle.toml"), manifest).unwrap();
    }
}

fn sha256_of(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A picture of one colour (red, green, blue); every seed gives other bytes.
pub fn picture([red, green, blue]: [u8; 3], seed: u32) -> Vec<u8> {
    const SIDE: u32 = 16;
    let pixels = (SIDE * SIDE * 3) as usize;
    let mut file = b"BM".to_vec();
    file.extend_from_slice(&(54 + pixels as u32).to_le_bytes());
    // Reserved field, which readers ignore.
    file.extend_from_slice(&seed.to_le_bytes());
    file.extend_from_slice(&54u32.to_le_bytes());
    file.extend_from_slice(&40u32.to_le_bytes());
    file.extend_from_slice(&SIDE.to_le_bytes());
    file.extend_from_slice(&SIDE.to_le_bytes());
    file.extend_from_slice(&[1, 0, 24, 0]);
    file.extend_from_slice(&[0; 24]);
    file.extend([blue, green, red].iter().cycle().take(pixels));
    file
}

/// Starts a daemon with these variables.
pub fn start(env: &[(String, String)], more: &[(&str, &str)]) -> Daemon {
    start_in(tempfile::tempdir().unwrap(), env, more)
}

/// The same in a data directory that was used before.
pub fn start_in(data: TempDir, env: &[(String, String)], more: &[(&str, &str)]) -> Daemon {
    // On a loaded machine the times of these small models are not meaningful.
    let latency = ("WEIR__ROLLOUT__MAX_LATENCY_RATIO", "1000");
    let env = env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let env: Vec<(&str, &str)> = std::iter::once(latency).chain(env).chain(more.iter().copied()).collect();
    Daemon::start_in(data, &env)
}

/// The daemon's status of a model.
pub fn model(daemon: &Daemon, name: &str) -> Value {
    let reply = daemon.get_as_operator(&format!("/models/{name}"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Waits until the model satisfies a condition, and returns it.
pub fn until(daemon: &Daemon, name: &str, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
    let end = Instant::now() + TIMEOUT;
    loop {
        let model = model(daemon, name);
        if is_so(&model) {
            return model;
        }
        assert!(Instant::now() < end, "timed out: not {what}: {model:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a version serves.
pub fn until_serving(daemon: &Daemon, name: &str, version: &str) -> Value {
    until(daemon, name, &format!("serving {version}"), |model| model["serving"] == version)
}

/// Waits until a version is rejected, and returns the reason.
pub fn until_rejected(daemon: &Daemon, name: &str, version: &str) -> String {
    let find = |model: &Value| -> Option<String> {
        let rejected =
            model["rejected"].as_array()?.iter().find(|rejected| rejected["version"] == version)?;
        Some(rejected["reason"].as_str()?.to_owned())
    };
    find(&until(daemon, name, &format!("rejecting {version}"), |model| find(model).is_some())).unwrap()
}

/// Sends a command to a model.
pub fn send_command(daemon: &Daemon, path: &str, token: Option<&str>) -> Reply {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    daemon.post(path, &headers, b"")
}

/// Runs `weir models`; returns whether it succeeded, and its output.
pub fn weir_models(daemon: &Daemon, env: &[(String, String)], args: &[&str]) -> (bool, String) {
    let mut command = weir();
    command.arg("models").args(args).arg("--data-dir").arg(daemon.data.path());
    if args[0] != "pull" {
        command.arg("--url").arg(format!("http://{}", daemon.address));
    }
    let output = command.envs(env.iter().cloned()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

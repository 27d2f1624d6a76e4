//! The module configurations and their defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::outbox::{Durability, WhenFull};
use inference::bundle::Precision;
use inference::engine::DeviceKind;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::memory_limit::memory_limit;

/// Who this box is.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name in events and metrics; the host name unless set.
    pub name: String,
}

/// The HTTP server.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest request body.
    pub max_body: ByteSize,
    /// Bodies held in memory at once, all requests together.
    pub max_inflight: ByteSize,
    /// Longest time for a body to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Address and port of the listener for health, metrics and models, with all details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// Names under which this box is reached, besides addresses, localhost and the node name.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages of other sites that may use this box.
    pub allowed_origins: Vec<String>,
    /// Memory for bodies of one address's requests; 0 is half of `max_inflight`, and at least `max_body`.
    pub max_inflight_per_address: ByteSize,
    /// Bytes a second that a body must bring, and that a client must take of its answer; 0 is no bound.
    pub min_rate: ByteSize,
    /// Time over which that is averaged.
    #[serde(with = "humantime_serde")]
    pub rate_window: Duration,
    /// Longest time for a request's head to arrive.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a connection is kept between requests.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Open connections; beyond it idle ones are closed, then more wait to be accepted.
    pub max_connections: usize,
    /// Open connections of one address; 0 is half of all.
    pub max_connections_per_address: usize,
    /// Most `file` parts in one multipart request.
    pub max_files: usize,
    /// Threads for network I/O; 0 is one a core, for a worker one for two cores, at most four.
    pub io_threads: usize,
}

/// Requests for predictions.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PredictConfig {
    /// Deadline of a request that names none.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Longest deadline that a request may name.
    #[serde(with = "humantime_serde")]
    pub max_deadline: Duration,
    /// Predictions in an answer that does not ask for a number.
    pub top_k: usize,
}

/// Bounds on images, read from headers before anything is allocated.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Most pixels (width x height).
    pub max_pixels: u64,
    /// Most scans of a progressive JPEG.
    pub max_scans: u32,
    /// Longest time that decoding one image may take, in CPU time of the thread that decodes it.
    #[serde(with = "humantime_serde")]
    pub decode_timeout: Duration,
    /// Memory for decoding, all images together; half of what the process may take unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_memory: Option<ByteSize>,
    /// The formats that are accepted.
    pub formats: Vec<gpu_kernels::ImageFormat>,
}

impl ImageConfig {
    /// [`Self::decode_memory`], or half of the control group's or machine's memory.
    pub fn decode_memory_bytes(&self) -> u64 {
        self.decode_memory.map_or_else(|| memory_limit() / 2, |bytes| bytes.as_u64())
    }

    /// What the decoders accept, for bodies of up to `max_bytes`.
    pub fn limits(&self, max_bytes: usize) -> gpu_kernels::DecodeLimits {
        gpu_kernels::DecodeLimits {
            max_bytes,
            max_pixels: self.max_pixels,
            max_scans: self.max_scans,
            max_time: self.decode_timeout,
            formats: self.formats.iter().copied().collect(),
        }
    }
}

/// Device, lanes and ONNX Runtime.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// `auto`, `cpu`, `cuda` or `tensorrt`.
    pub device: DeviceKind,
    /// Lanes on the CPU; 0 is one a core. A GPU has one.
    pub lanes: usize,
    /// Images that may wait for a lane; 0 is eight a lane on the CPU, and four batches a GPU.
    pub queue: usize,
    /// Precision of the variant; the bundle's first for the device unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// libonnxruntime: the file or its folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<PathBuf>,
    /// Folders with libraries of NVIDIA's: the libraries themselves, or a `site-packages` with PyPI's wheels of them.
    pub library_folders: Vec<PathBuf>,
    /// Numbers of the GPUs that serve; all where none is named.
    pub gpus: Vec<u32>,
    /// Most images that a GPU computes at once.
    pub max_batch: usize,
    /// Longest that an image waits for others to be computed with it, while its GPU is busy.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
    /// Threads that decode for GPUs on the CPU; 0 is one a core. They are shared out among the GPUs.
    pub decode_threads: usize,
    /// Whether GPUs decode JPEGs too.
    pub nvjpeg: bool,
    /// Whether the CPU follows every code of a JPEG before a GPU decodes it: what is damaged within is refused, as on the CPU,
    /// which takes most of the time that the GPU saves.
    pub check_jpeg: bool,
    /// Whether a GPU records batches of each size once and replays them; with the CUDA provider. Off until it has been proved
    /// on a GPU: while one lane records, others must not take memory.
    pub cuda_graphs: bool,
    /// How long a lane may be at one image before it is replaced.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: DeviceKind::default(),
            lanes: 0,
            queue: 0,
            precision: None,
            onnxruntime: None,
            library_folders: Vec::new(),
            gpus: Vec::new(),
            max_batch: 64,
            max_delay: Duration::from_millis(2),
            decode_threads: 0,
            nvjpeg: true,
            check_jpeg: false,
            cuda_graphs: false,
            stall_timeout: Duration::from_secs(120),
        }
    }
}

/// The content cache: the same bytes, model and parameters get the same answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Memory for cached answers.
    pub max_bytes: ByteSize,
    /// How long an answer is kept.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

/// The log of events that leave the box.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxConfig {
    /// Bytes on disk, at most.
    pub max_bytes: ByteSize,
    /// How long events are kept.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Size of one file.
    pub segment: ByteSize,
    /// What happens at the bound.
    pub when_full: WhenFull,
    /// Most that unsent events of batches may take of `max_bytes`, in percent.
    pub batch_share: u8,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Whether `max_bytes` is taken from the disk in advance.
    pub reserve: bool,
}

/// `image_url`: what may be fetched.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// Whether `image_url` is served at all.
    pub enabled: bool,
    /// Networks that may be reached besides public addresses, such as the cameras' own `192.168.8.0/24`.
    pub allow_networks: Vec<IpNet>,
    /// Longest time for one fetch, redirects included.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Most redirects that are followed.
    pub max_redirects: usize,
    /// Fetches at once; beyond it requests get 429.
    pub max_concurrent: usize,
    /// Bytes a second that a server must send of an image; 0 is no bound.
    pub min_rate: ByteSize,
    /// Time over which that is averaged.
    #[serde(with = "humantime_serde")]
    pub rate_window: Duration,
    /// PEM file of certificates that are trusted besides the system's authorities: other authorities, or those of servers
    /// that signed their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// The end of the process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// Longest time for requests in hand to finish after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl HttpConfig {
    /// [`Self::max_body`] as a length in memory.
    pub fn max_body_bytes(&self) -> usize {
        usize::try_from(self.max_body.as_u64()).unwrap_or(usize::MAX)
    }

    /// Bytes of bodies that one address may have in memory.
    pub fn inflight_per_address(&self) -> usize {
        let bytes = match self.max_inflight_per_address.as_u64() {
            0 => (self.max_inflight.as_u64() / 2).max(self.max_body.as_u64()),
            bytes => bytes,
        };
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Connections of one address, where there may be `limit` in all.
    pub fn connections_per_address(&self, limit: usize) -> usize {
        match self.max_connections_per_address {
            0 => limit.div_ceil(2),
            most => most.min(limit),
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { name: if name.is_empty() { "weir".into() } else { name } }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: ByteSize::mib(20),
            max_inflight: ByteSize::mib(64),
            body_timeout: Duration::from_secs(30),
            admin_listen: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_inflight_per_address: ByteSize::b(0),
            min_rate: ByteSize::kib(1),
            rate_window: Duration::from_secs(15),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            max_connections: 4096,
            max_connections_per_address: 0,
            max_files: 16,
            io_threads: 0,
        }
    }
}

impl Default for PredictConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), max_deadline: Duration::from_secs(60), top_k: 5 }
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        let limits = gpu_kernels::DecodeLimits::default();
        let formats = gpu_kernels::ImageFormat::ALL.to_vec();
        Self {
            max_pixels: limits.max_pixels,
            max_scans: limits.max_scans,
            decode_timeout: limits.max_time,
            decode_memory: None,
            formats,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { enabled: true, max_bytes: ByteSize::mib(16), ttl: Duration::from_secs(3600) }
    }
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize::mib(512),
            max_age: Duration::from_secs(30 * 24 * 3600),
            segment: ByteSize::mib(16),
            when_full: WhenFull::default(),
            batch_share: 50,
            durability: Durability::default(),
            reserve: true,
        }
    }
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            allow_networks: Vec::new(),
            timeout: Duration::from_secs(10),
            max_redirects: 3,
            max_concurrent: 16,
            min_rate: ByteSize::kib(1),
            rate_window: Duration::from_secs(5),
            ca_file: None,
        }
    }
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { grace: Duration::from_secs(20) }
    }
}

//! The routes of batches over a socket, on stores in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cloud_sync::secret::Secret;
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::sync::watch;

use crate::background::Background;
use crate::batch::BatchService;
use crate::batch::testing::MemoryStores;
use crate::config::{Config, RolloutConfig};
use crate::http::{Phase, Role, Server, ServerState, Services, routes};
use crate::rollout::Rollouts;
use crate::rollout::testing::context;
use crate::serving::{Endpoint, Models};

struct Bench {
    state: Arc<ServerState>,
    stores: MemoryStores,
    address: SocketAddr,
    client: Client,
    dir: tempfile::TempDir,
    _stop: watch::Sender<bool>,
}

impl Bench {
    async fn with(set: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().to_path_buf(), ..Config::default() };
        config.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.http.max_body = bytesize::ByteSize::b(1000);
        set(&mut config);
        let stores = MemoryStores::default();
        let state = ServerState::new(Role::Serve, config);
        let server = Server::bind(&state, 1000).await.unwrap();
        let address = server.address();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(server.run(routes(Arc::clone(&state)), stopped));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { state, stores, address, client, dir, _stop: stop }
    }

    async fn new() -> Self {
        let bench = Self::with(|_| ()).await;
        bench.serve();
        bench
    }

    fn serve(&self) {
        let service = BatchService::open(self.stores.stores(), self.state.config(), Box::new(|| 17)).unwrap();
        self.state.ready(self.with_batches(service));
    }

    fn with_batches(&self, batches: Arc<BatchService>) -> Services {
        let rollouts = context(self.dir.path(), None, &RolloutConfig::default());
        Services {
            models: Arc::new(Models::new(Endpoint::new("none"), Vec::new())),
            device: rollouts.loader.device.clone(),
            rollouts: Rollouts::start(rollouts, Vec::new()),
            admin_token: Secret::default(),
            predictions: None,
            batches: Some(batches),
            background: Background {
                links: Vec::new(),
                uplink: None,
                capture: None,
                batches: None,
                blobs: None,
                quarantined: Vec::new(),
            },
        }
    }

    async fn post_as(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        let url = format!("http://{}{path}", self.address);
        let request = self.client.post(url).header("content-type", content_type).body(body.into());
        request.send().await.unwrap()
    }

    async fn post(&self, body: &str) -> Response {
        self.post_as("/batch/predict", "application/json", body).await
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(format!("http://{}{path}", self.address)).send().await.unwrap()
    }

    fn spooled(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("spool")).unwrap().count()
    }
}

async fn json(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// The refusal's status, code and sentence; and that its shape is that of every error.
async fn refusal(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let retry = response.headers().contains_key("retry-after");
    assert_eq!(retry, matches!(status, 429 | 503), "Retry-After on {status}");
    let body = json(response).await;
    (status, body["code"].as_str().unwrap().to_owned(), body["error"].as_str().unwrap().to_owned())
}

const TWO: &str = r#"{"image_urls": ["http://a/1", "http://a/2"], "request_id": "mine"}"#;

#[tokio::test]
async fn a_batch_from_its_submission_to_its_results() {
    let bench = Bench::new().await;
    let taken = bench.post(TWO).await;
    assert_eq!(taken.status(), 202);
    assert_eq!(taken.headers()["location"], "/batch/status/mine");
    let expected: Value = serde_json::json!({"request_id": "mine", "status": "queued", "total": 2, "status_url": "/batch/status/mine"});
    assert_eq!(json(taken).await, expected);

    let status = json(bench.get("/batch/status/mine").await).await;
    assert_eq!((&status["status"], &status["total"]), (&"queued".into(), &2.into()));
    assert_eq!((&status["completed"], &status["failed"]), (&0.into(), &0.into()));
    assert!(humantime::parse_rfc3339(status["created_at"].as_str().unwrap()).is_ok(), "{status}");
    for absent in ["results", "results_uri", "results_url"] {
        assert!(status.get(absent).is_none(), "{absent} in {status}");
    }
    let (code, name, _) = refusal(bench.get("/batch/results/mine").await).await;
    assert_eq!((code, name.as_str()), (404, "batch_not_finished"));

    let lines = "{\"index\":0,\"status\":\"ok\"}\n{\"index\":1,\"status\":\"failed\"}\n";
    bench.stores.finish("mine", lines, Some(r#"[{"index":0,"confidence":0.10},{"index":1}]"#));
    let finished = bench.get("/batch/status/mine").await.text().await.unwrap();
    assert!(finished.contains(r#""results":[{"index":0,"confidence":0.10},{"index":1}]"#), "{finished}");
    let finished: Value = serde_json::from_str(&finished).unwrap();
    assert_eq!((&finished["status"], &finished["completed"]), (&"completed".into(), &1.into()));
    assert_eq!(finished["results_url"], "/batch/results/mine");
    assert_eq!(finished["results_uri"], "memory://results/mine.jsonl");
    let results = bench.get("/batch/results/mine").await;
    assert_eq!(results.headers()["content-type"], "application/x-ndjson");
    assert_eq!(results.headers()["content-length"], lines.len().to_string().as_str());
    assert_eq!(results.text().await.unwrap(), lines);

    let again = bench.post(TWO).await;
    assert_eq!(again.status(), 202);
    assert_eq!(json(again).await["status"], "completed");
    assert_eq!(bench.stores.queue.jobs.lock().len(), 1);
    assert_eq!(bench.spooled(), 0);

    let metrics = bench.get("/metrics").await.text().await.unwrap();
    for line in [
        r#"weir_batches_submitted_total{outcome="accepted"} 1"#,
        r#"weir_batch_images_submitted_total{outcome="accepted"} 2"#,
        r#"weir_batches_submitted_total{outcome="repeated"} 1"#,
        r#"weir_http_requests_total{route="batch_predict",status="202"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test]
async fn what_is_wrong_has_its_status_and_code() {
    let bench = Bench::with(|config| {
        config.batch.max_images = 3;
        config.batch.max_body = bytesize::ByteSize::kib(64);
    })
    .await;
    bench.serve();
    assert_eq!(bench.post(TWO).await.status(), 202);
    let form = |content: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{content}\r\n--b--\r\n")
    };
    let (as_json, as_form) = ("application/json", "multipart/form-data; boundary=b");
    let four = r#"{"image_urls": ["http://a/1", "http://a/1", "http://a/1", "http://a/1"]}"#;
    for (path, content_type, body, status, code) in [
        ("", as_json, String::new(), 400, "empty_body"),
        ("", as_json, "{".into(), 400, "invalid_json"),
        ("", as_json, r#"{"image_urls": []}"#.into(), 400, "no_images"),
        ("", as_json, r#"{"image_urls": ["file:///a"]}"#.into(), 400, "invalid_url"),
        ("", as_json, four.into(), 413, "too_many_images"),
        ("", as_json, TWO.replace("/2", "/3"), 409, "request_id_taken"),
        ("", as_json, TWO.replace("mine", "a/b"), 400, "invalid_json"),
        ("", "image/jpeg", "\u{ff}\u{d8}".into(), 415, "unsupported_type"),
        ("?request_id=a%2Fb", as_json, TWO.into(), 400, "invalid_query"),
        ("?top_k=18", as_json, TWO.into(), 400, "invalid_query"),
        ("?camera=a&camera=a", as_json, TWO.into(), 400, "invalid_query"),
        ("?model=fish", as_json, TWO.into(), 400, "invalid_query"),
        ("?request_id=other", as_json, TWO.into(), 400, "invalid_json"),
        ("", as_form, form(&"a".repeat(1001)), 413, "image_too_large"),
        ("", as_form, "--b--\r\n".into(), 400, "no_images"),
        ("", as_form, form("a").replace("--b--", ""), 400, "invalid_multipart"),
        ("", as_json, " ".repeat(65 << 10), 413, "body_too_large"),
    ] {
        let reply = bench.post_as(&format!("/batch/predict{path}"), content_type, body.clone()).await;
        let (found, name, sentence) = refusal(reply).await;
        let start: String = body.chars().take(60).collect();
        assert_eq!((found, name.as_str()), (status, code), "{path} {start}: {sentence}");
        if code == "body_too_large" {
            assert!(sentence.contains("batch.max_body"), "{sentence}");
        }
    }
    for (path, status, code) in [
        ("/batch/status/none", 404, "unknown_batch"),
        ("/batch/status/..%2f..", 404, "unknown_batch"),
        ("/batch/results/none", 404, "unknown_batch"),
        ("/batch/status/", 404, "not_found"),
        ("/batch/status/a/b", 404, "not_found"),
        ("/batch/predict", 405, "method_not_allowed"),
    ] {
        let (found, name, _) = refusal(bench.get(path).await).await;
        assert_eq!((found, name.as_str()), (status, code), "{path}");
    }
    let (found, name, _) = refusal(bench.post_as("/batch/status/mine", as_json, "").await).await;
    assert_eq!((found, name.as_str()), (405, "method_not_allowed"));
    assert_eq!(bench.stores.queue.jobs.lock().len(), 1);
    assert_eq!(bench.spooled(), 0);
}

#[tokio::test]
async fn options_may_stand_in_the_query_and_a_form_has_several_files() {
    let bench = Bench::new().await;
    let part = "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"f\"\r\n\r\nabc\r\n";
    let body = format!("{part}{part}--b--\r\n");
    let path = "/batch/predict?request_id=posted&camera=dock%203&top_k=2";
    let taken = json(bench.post_as(path, "multipart/form-data; boundary=b", body).await).await;
    assert_eq!((&taken["request_id"], &taken["total"]), (&"posted".into(), &2.into()));
    let message: Value = serde_json::from_slice(&bench.stores.queue.jobs.lock()[0].payload).unwrap();
    assert_eq!((&message["camera"], &message["top_k"]), (&"dock 3".into(), &2.into()));
    assert_eq!(message["image_urls"], serde_json::json!(["blob:0", "blob:1"]));
    let objects = bench.stores.blob.objects.lock();
    assert_eq!(objects["batches/posted/files/00000001"], &b"abc"[..]);
}

#[tokio::test]
async fn a_link_that_is_away_is_named_and_the_id_can_be_used_again() {
    let bench = Bench::new().await;
    bench.stores.state.faults.fail("create_batch", 1);
    let nameless = r#"{"image_urls": ["http://a/1"]}"#;
    let reply = bench.post(nameless).await;
    assert_eq!((reply.status().as_u16(), reply.headers()["retry-after"].to_str().unwrap()), (503, "5"));
    let body = json(reply).await;
    assert_eq!(body["code"], "link_unavailable");
    let sentence = body["error"].as_str().unwrap();
    assert!(sentence.contains("redis") && !sentence.contains("10.20.30.40"), "{sentence}");
    let id = body["request_id"].as_str().unwrap();
    let reply = bench.post_as(&format!("/batch/predict?request_id={id}"), "", nameless).await;
    assert_eq!(reply.status(), 202);
    assert_eq!(json(reply).await["request_id"], id);

    bench.stores.queue.limit.store(100, Ordering::Relaxed);
    let (status, code, sentence) = refusal(bench.post(nameless).await).await;
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    assert!(sentence.contains("batch.max_queued"), "{sentence}");
    bench.stores.queue.limit.store(10, Ordering::Relaxed);
    let (status, code, sentence) = refusal(bench.post(nameless).await).await;
    assert_eq!((status, code.as_str()), (413, "batch_too_large"));
    assert!(sentence.contains("batch.max_queued"), "{sentence}");

    bench.stores.state.faults.fail("batch", 1);
    let (status, code, _) = refusal(bench.get("/batch/status/mine").await).await;
    assert_eq!((status, code.as_str()), (503, "link_unavailable"));
    let metrics = bench.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains(r#"weir_batches_submitted_total{outcome="unavailable"} 2"#), "{metrics}");
}

#[tokio::test]
async fn before_and_after_serving_and_when_switched_off_batches_are_refused() {
    let bench = Bench::with(|_| ()).await;
    let not_ready = (503, "not_ready".to_owned());
    for reply in [bench.post(TWO).await, bench.get("/batch/status/mine").await] {
        let (status, code, _) = refusal(reply).await;
        assert_eq!((status, code), not_ready);
    }
    bench.serve();
    assert_eq!(bench.post(TWO).await.status(), 202);
    bench.state.enter(Phase::Draining);
    let (status, code, _) = refusal(bench.post(TWO).await).await;
    assert_eq!((status, code.as_str()), (503, "draining"));
    assert_eq!(bench.get("/batch/status/mine").await.status(), 200, "asking goes on");

    let bench = Bench::with(|config| config.batch.enabled = false).await;
    bench.state.enter(Phase::Ready);
    for reply in [bench.post(TWO).await, bench.get("/batch/results/mine").await] {
        let (status, code, sentence) = refusal(reply).await;
        assert_eq!((status, code.as_str()), (403, "batch_disabled"));
        assert!(sentence.contains("batch.enabled"), "{sentence}");
    }
}

#[tokio::test]
async fn a_body_that_takes_too_long_leaves_nothing_and_submissions_are_bounded() {
    let bench = Bench::with(|config| config.batch.body_timeout = Duration::from_secs(5)).await;
    bench.serve();
    // From two addresses, since one may have half of them.
    let never = |number: u8| {
        let head = "POST /batch/predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"image";
        let address = bench.address;
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, 1 + number % 2], 0).into()).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut reply = vec![0; 16];
            stream.read_exact(&mut reply).await.unwrap();
            String::from_utf8(reply).unwrap()
        })
    };
    let slow: Vec<_> = (0..8).map(never).collect();
    let until = Instant::now() + Duration::from_secs(60);
    while bench.spooled() < 8 {
        assert!(Instant::now() < until, "{} bodies are being spooled", bench.spooled());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, code, _) = refusal(bench.post(TWO).await).await;
    assert_eq!((status, code.as_str()), (429, "overloaded"));
    for reply in slow {
        assert_eq!(reply.await.unwrap(), "HTTP/1.1 408 Req");
    }
    assert_eq!(bench.post(TWO).await.status(), 202);
    assert_eq!(bench.spooled(), 0);
}

/// CPU time of the thread: what it costs is the same however busy the machine is. Client and server share this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a status costs beside the store: well under the 5 ms that it may take with both cores busy.
#[tokio::test]
async fn a_status_with_inline_results_costs_little() {
    let bench = Bench::new().await;
    bench.post(TWO).await;
    let result = format!(r#"{{"index":0,"status":"ok","image_url":"http://a/{}"}}"#, "a".repeat(400));
    let inline = format!("[{}]", vec![result; 100].join(","));
    bench.stores.finish("mine", "{\"status\":\"ok\"}\n", Some(&inline));
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = cpu_time();
        assert!(bench.get("/batch/status/mine").await.bytes().await.unwrap().len() > 40_000);
        times.push(cpu_time() - start);
    }
    times.sort_unstable();
    println!("p50 {:?}, p99 {:?}", times[100], times[198]);
    assert!(times[0] < Duration::from_millis(5), "every status took {:?} and more", times[0]);
}

#[tokio::test]
async fn a_batch_is_cancelled_once_and_for_all() {
    let bench = Bench::new().await;
    let delete = async |path: &str| {
        bench.client.delete(format!("http://{}{path}", bench.address)).send().await.unwrap()
    };
    assert_eq!(refusal(delete("/batch/mine").await).await.1, "unknown_batch");
    assert_eq!(bench.post(TWO).await.status(), 202);
    for _ in 0..2 {
        let cancelled = delete("/batch/mine").await;
        assert_eq!(
            (cancelled.status(), &cancelled.headers()["cache-control"]),
            (202.try_into().unwrap(), &"no-store".parse().unwrap())
        );
        let cancelled = json(cancelled).await;
        assert_eq!((&cancelled["status"], &cancelled["total"]), (&"cancelled".into(), &2.into()));
        assert!(cancelled.get("results_url").is_none(), "{cancelled}");
    }
    assert_eq!(json(bench.get("/batch/status/mine").await).await["status"], "cancelled");
    assert_eq!(refusal(bench.get("/batch/results/mine").await).await.1, "batch_not_finished");
    assert_eq!(json(bench.post(TWO).await).await["status"], "cancelled", "it does not begin anew");
    // What the worker leaves.
    bench.stores.finish("mine", "{\"index\":0,\"status\":\"ok\"}\n", None);
    let over = delete("/batch/mine").await;
    assert_eq!(over.status(), 200);
    let over = json(over).await;
    assert_eq!((&over["status"], &over["completed"]), (&"cancelled".into(), &1.into()));
    assert_eq!(over["results_url"], "/batch/results/mine");
    // Also when the state store has forgotten it.
    bench.stores.state.batches.lock().clear();
    assert_eq!(json(bench.get("/batch/status/mine").await).await["status"], "cancelled");
    assert_eq!(bench.get("/batch/results/mine").await.text().await.unwrap().lines().count(), 1);
    bench.stores.state.batches.lock().clear();
    assert_eq!(delete("/batch/mine").await.status(), 200);

    bench.post(&TWO.replace("mine", "other")).await;
    bench.stores.finish("other", "{\"index\":0,\"status\":\"ok\"}\n{\"index\":1,\"status\":\"ok\"}\n", None);
    let (status, code, _) = refusal(delete("/batch/other").await).await;
    assert_eq!((status, code.as_str()), (409, "batch_finished"));
    let lost = bench.post(&TWO.replace("mine", "lost")).await;
    assert_eq!(lost.status(), 202);
    bench.stores.state.batches.lock().clear();
    assert_eq!(delete("/batch/lost").await.status(), 202);

    for (method, path, allow) in [
        ("GET", "/batch/mine", "DELETE, OPTIONS"),
        ("PUT", "/batch/predict", "POST, DELETE, OPTIONS"),
        ("DELETE", "/batch/status/mine", "GET, HEAD, OPTIONS"),
    ] {
        let request =
            bench.client.request(method.parse().unwrap(), format!("http://{}{path}", bench.address));
        let refused = request.send().await.unwrap();
        assert_eq!((refused.status().as_u16(), refused.headers()["allow"].to_str().unwrap()), (405, allow));
    }
}

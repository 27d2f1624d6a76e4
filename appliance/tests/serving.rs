//! A working daemon from the view of clients and operators.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use support::client::{connect, read};
use support::{Daemon, bundle, pictures, sample, wait, weir};

#[test]
fn a_photo_comes_back_as_a_species() {
    let daemon = Daemon::start(&[]);
    let (picture, label) = sample();
    let reply =
        daemon.post("/predict?camera=dock-3&top_k=3&model=fish", &[("x-request-id", "mine-1")], &picture);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let json = reply.json();
    assert_eq!(json["species"], label.as_str());
    assert_eq!(json["request_id"], "mine-1");
    assert_eq!(reply.header("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(json["camera"], "dock-3");
    assert_eq!(json["model"]["name"], "fish");
    assert_eq!(json["cached"], false);
    let predictions = json["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 3);
    assert_eq!(predictions[0]["score"], json["confidence"]);
    let scores: Vec<f64> = predictions.iter().map(|p| p["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    for stage in ["decode", "preprocess", "queue", "infer", "total"] {
        assert!(json["timings_ms"][stage].as_f64().is_some_and(|ms| ms >= 0.0), "{stage} in {json}");
    }
    let all = daemon.post("/predict?top_k=17", &[], &picture).json();
    let sum: f64 = all["predictions"].as_array().unwrap().iter().map(|p| p["score"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-3, "the scores sum to {sum}");
}

#[test]
fn the_same_picture_is_computed_once() {
    let daemon = Daemon::start(&[]);
    let picture = pictures::bmp(800, 800, 3);
    let replies: Vec<_> = std::thread::scope(|scope| {
        let (address, picture) = (daemon.address, &picture);
        let threads: Vec<_> = (0..10)
            .map(|_| scope.spawn(move || support::post(address, "/predict", &[], picture).json()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(
        replies.iter().filter(|r| r["cached"] == false).count(),
        1,
        "one of ten cameras' posts is computed"
    );
    assert!(replies.iter().all(|r| r["predictions"] == replies[0]["predictions"]));
    assert_eq!(daemon.post("/predict", &[], &picture).json()["cached"], true);
    assert_eq!(daemon.post("/predict", &[], &pictures::bmp(800, 800, 4)).json()["cached"], false);
    assert_eq!(daemon.events().len(), 12, "every acknowledged answer has its event, cached or not");
    let metrics = daemon.get("/metrics").text();
    assert!(metrics.contains("weir_cache_requests_total{outcome=\"miss\"} 2"), "{metrics}");
}

#[test]
fn cached_answers_expire() {
    // Much longer than a disk stalls: the time begins before the first event is written.
    let daemon = Daemon::start(&[("WEIR__CACHE__TTL", "10s")]);
    let (picture, _) = sample();
    assert_eq!(daemon.post("/predict", &[], &picture).json()["cached"], false);
    assert_eq!(daemon.post("/predict", &[], &picture).json()["cached"], true);
    support::load::wait_until("the answer has expired", || {
        daemon.post("/predict", &[], &picture).json()["cached"] == false
    });
}

#[test]
fn health_metrics_and_the_contract_are_correct() {
    let daemon = Daemon::start(&[("WEIR__NODE__NAME", "dock"), ("WEIR__ENGINE__LANES", "2")]);
    let (picture, label) = sample();
    assert_eq!(daemon.post("/predict", &[], &picture).status, 200);
    let health = daemon.get_as_operator("/health");
    assert_eq!(health.status, 200);
    let json = health.json();
    assert_eq!(json["status"], "ready");
    assert_eq!(json["node"], "dock");
    assert_eq!(json["device"]["kind"], "cpu");
    assert_eq!(json["device"]["lanes"], 2);
    assert_eq!(json["queue"]["capacity"], 16);
    assert_eq!(json["models"][0]["precision"], "int8");
    assert_eq!(json["outbox"]["events"], 1);
    assert_eq!(json["outbox"]["backlog"], 1);
    assert_eq!(daemon.get("/health/live").status, 200);
    assert_eq!(daemon.get("/health/ready").status, 200);

    let metrics = daemon.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = metrics.text();
    for line in [
        "weir_http_requests_total{route=\"predict\",status=\"200\"} 1".to_owned(),
        format!("weir_predictions_total{{species=\"{label}\"}} 1"),
        "weir_stage_duration_seconds_count{stage=\"infer\"} 3".to_owned(),
        "weir_queue_capacity 16".to_owned(),
        "weir_lanes_alive 2".to_owned(),
        "weir_outbox_events 1".to_owned(),
        "weir_model_info{model=\"fish\",name=\"fish\"".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?} is missing in:\n{text}");
    }

    let contract = daemon.get("/openapi.json").json();
    for path in ["/predict", "/health", "/health/live", "/health/ready", "/metrics"] {
        assert!(contract["paths"][path].is_object(), "{path} is missing");
    }
    assert!(contract["components"]["schemas"]["PredictReply"].is_object());
    let page = daemon.get("/docs");
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(!page.text().contains("https://"), "the page needs nothing from outside");
    assert_eq!(daemon.get("/").status, 307);
}

/// Sends a head and waits for `100 Continue`: from then on the request is in progress.
fn begin(stream: &mut TcpStream, length: usize) {
    let head = format!(
        "POST /predict HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    std::io::Read::read_exact(stream, &mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
}

#[test]
fn a_silent_connection_is_closed_and_makes_room() {
    let daemon =
        Daemon::start(&[("WEIR__HTTP__HEADER_TIMEOUT", "300ms"), ("WEIR__HTTP__MAX_CONNECTIONS", "1")]);
    for first in [&b""[..], b"P", b"GET /health/live HTTP/1.1\r\nhost"] {
        let mut silent = connect(daemon.address);
        silent.write_all(first).unwrap();
        assert_eq!(daemon.get("/health/live").status, 200, "after {:?}", String::from_utf8_lossy(first));
    }
}

#[test]
fn sigterm_completes_requests_in_progress_and_exits_0() {
    let mut daemon = Daemon::start(&[]);
    let picture = pictures::bmp(1000, 1000, 5);
    let mut stream = connect(daemon.address);
    begin(&mut stream, picture.len());
    stream.write_all(&picture[..picture.len() - 1]).unwrap();
    daemon.terminate();
    daemon.wait_for_log("stopping");
    // The listener closes first, and this request must still be answered.
    stream.write_all(&picture[picture.len() - 1..]).unwrap();
    assert_eq!(read(&mut stream).status, 200);
    let status = daemon.wait(Duration::from_secs(10)).expect("it did not end");
    assert_eq!(status.code(), Some(0));
    assert_eq!(daemon.events().len(), 1);
}

#[test]
fn the_grace_period_ends() {
    let mut daemon = Daemon::start(&[("WEIR__SHUTDOWN__GRACE", "300ms")]);
    let mut stream = connect(daemon.address);
    begin(&mut stream, 100);
    stream.write_all(b"half").unwrap();
    daemon.terminate();
    let status = daemon.wait(Duration::from_secs(10)).expect("it did not end");
    assert_eq!(status.code(), Some(1), "a request was abandoned, which is no good end");
}

#[test]
fn the_grace_period_is_shared_by_everything_that_hangs() {
    // Accepts connections and never responds, as broker and as image server of a batch.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap().to_string();
    let grace = Duration::from_secs(10);
    let mut daemon = Daemon::start(&[
        ("WEIR__SHUTDOWN__GRACE", "10s"),
        ("WEIR__FETCH__ALLOW_NETWORKS", "127.0.0.0/8"),
        ("WEIR__FETCH__TIMEOUT", "60s"),
        ("WEIR__BATCH__QUEUE", "embedded"),
        ("KAFKA_BOOTSTRAP_SERVERS", &at),
    ]);
    let reply = daemon.post(
        "/batch/predict",
        &[("content-type", "application/json")],
        format!("{{\"image_urls\": [\"http://{at}/a.jpg\"]}}").as_bytes(),
    );
    assert_eq!(reply.status, 202, "{}", reply.text());
    // Connections are kept open, so that clients do not notice.
    let mut held = Vec::new();
    loop {
        let (mut stream, _) = silent.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut head = [0; 4];
        let read = std::io::Read::read(&mut stream, &mut head).unwrap_or(0);
        held.push(stream);
        if &head[..read] == b"GET " {
            break;
        }
    }
    let mut stream = connect(daemon.address);
    begin(&mut stream, 100);
    stream.write_all(b"half").unwrap();
    daemon.terminate();
    let began = std::time::Instant::now();
    let status = daemon.wait(Duration::from_secs(30)).expect("it did not end");
    let took = began.elapsed();
    assert_eq!(status.code(), Some(1), "a request was abandoned, which is no good end");
    // Two grace periods in sequence would take 20 s; closing may wait for the disk.
    assert!(took < grace + Duration::from_secs(8), "{took:?}");
}

#[test]
fn idle_connections_do_not_hold_up_the_end() {
    let mut daemon = Daemon::start(&[]);
    let mut idle = connect(daemon.address);
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!(read(&mut idle).status, 200);
    daemon.terminate();
    assert_eq!(daemon.wait(Duration::from_secs(15)).expect("it did not end").code(), Some(0));
}

#[test]
fn images_are_fetched_from_allowed_networks() {
    let (picture, label) = sample();
    let camera = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/still.jpg", camera.local_addr().unwrap());
    let served = picture.clone();
    std::thread::spawn(move || {
        for stream in camera.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 2048];
            let _ = std::io::Read::read(&mut stream, &mut head);
            let _ = stream
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", served.len()).as_bytes());
            let _ = stream.write_all(&served);
        }
    });
    let body = format!("{{\"image_url\": \"{url}\"}}");
    let open = Daemon::start(&[("WEIR__FETCH__ALLOW_NETWORKS", "127.0.0.0/8")]);
    let reply = open.post("/predict", &[], body.as_bytes());
    assert_eq!(reply.json()["species"], label.as_str(), "{}", reply.text());
    let closed = Daemon::start(&[]);
    assert_eq!(closed.post("/predict", &[], body.as_bytes()).code(), "url_refused");
}

#[test]
fn predict_prints_a_table_and_json() {
    let (_, label) = sample();
    let golden = bundle().join("golden");
    let table = weir().arg("predict").arg(&golden).output().unwrap();
    assert!(table.status.success(), "{}", String::from_utf8_lossy(&table.stderr));
    assert!(String::from_utf8_lossy(&table.stdout).contains(&label));
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "no picture").unwrap();
    let json = weir().args(["predict", "--json"]).arg(&golden).arg(&text).output().unwrap();
    assert!(!json.status.success(), "a file that fails must show in the exit code");
    let lines: Vec<serde_json::Value> =
        String::from_utf8(json.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().any(|l| l["species"] == label.as_str()));
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("unsupported"));
}

#[test]
fn an_image_is_answered_the_same_whatever_its_lane_decoded_before() {
    let field = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu-kernels/tests/field");
    let read = |name: &str| std::fs::read(field.join(name)).unwrap();
    let settings = [("WEIR__ENGINE__LANES", "1"), ("WEIR__CACHE__ENABLED", "false")];
    let mut predict = weir();
    predict.envs(settings).args(["predict", "--json"]);
    for name in ["own_tables.jpg", "webcam_no_tables.jpg", "webcam_full.jpg"] {
        predict.arg(field.join(name));
    }
    let output = predict.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[1]["species"], lines[2]["species"]);
    assert_eq!(lines[1]["confidence"], lines[2]["confidence"]);

    let daemon = Daemon::start(&settings);
    let right = daemon.post("/predict", &[], &read("webcam_full.jpg")).json();
    for before in ["own_tables.jpg", "tiled_planar.tif", "strip_bomb.tif", "webcam_full.jpg"] {
        let reply = daemon.post("/predict", &[], &read(before));
        if before.ends_with(".tif") {
            assert_eq!((reply.status, reply.code().as_str()), (415, "unsupported_image"), "{before}");
        }
        let reply = daemon.post("/predict", &[], &read("webcam_no_tables.jpg"));
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["predictions"], right["predictions"], "after {before}");
    }
}

#[test]
fn only_the_configured_formats_are_accepted() {
    let daemon = Daemon::start(&[("WEIR__IMAGE__FORMATS", "jpeg,png")]);
    let gif = b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let reply = daemon.post("/predict", &[], gif);
    assert_eq!((reply.status, reply.code().as_str()), (415, "unsupported_type"));
    assert!(reply.text().contains("send JPEG or PNG"), "{}", reply.text());
    assert_eq!(daemon.post("/predict", &[], &sample().0).status, 200);
}

#[test]
fn outbox_tail_follows_a_running_daemon() {
    let daemon = Daemon::start(&[]);
    let (picture, label) = sample();
    assert_eq!(daemon.post("/predict?camera=dock-3", &[], &picture).status, 200);
    let mut tail = weir();
    tail.args(["outbox", "tail", "--follow", "--data-dir"]).arg(daemon.data.path());
    let mut tail = tail.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(tail.stdout.take().unwrap()));
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains(&label) && first.contains("dock-3"), "{first}");
    assert_eq!(daemon.post("/predict?camera=dock-4", &[], &picture).status, 200);
    let second = lines.next().unwrap().unwrap();
    assert!(second.contains("dock-4") && second.contains("cached"), "{second}");
    tail.kill().unwrap();
    wait(&mut tail, Duration::from_secs(30)).unwrap();
}

//! Clients that are slow, numerous or malicious: they lose their resources, and other clients are served.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use support::client::{connect, read};
use support::cloud::metric;
use support::load::wait_until;
use support::{Daemon, pictures, sample, weir};

/// Longest wait for an expected event.
const TIMEOUT: Duration = Duration::from_secs(30);

fn begin_upload(daemon: &Daemon, path: &str, length: usize, sent: &[u8]) -> TcpStream {
    let mut stream = connect(daemon.address);
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(sent).unwrap();
    stream
}

/// Sends a head and waits for `100 Continue`: from then on the request is in progress.
fn begin_in_hand(daemon: &Daemon) -> TcpStream {
    let head =
        "POST /predict HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n";
    let end = Instant::now() + TIMEOUT;
    loop {
        let mut stream = connect(daemon.address);
        let mut interim = [0; 25];
        let answered = stream.write_all(head.as_bytes()).and_then(|()| stream.read_exact(&mut interim));
        if answered.is_ok() && &interim == b"HTTP/1.1 100 Continue\r\n\r\n" {
            return stream;
        }
        // An earlier connection of this test may be in use for a moment longer.
        assert!(Instant::now() < end, "{:?}", String::from_utf8_lossy(&interim));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the server closes the connection, with or without a response, before the read timeout.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn a_body_that_trickles_is_cut_by_its_rate_and_one_that_keeps_it_is_not() {
    let daemon = Daemon::start(&[
        ("WEIR__HTTP__MIN_RATE", "1 KiB"),
        ("WEIR__HTTP__RATE_WINDOW", "5s"),
        ("WEIR__HTTP__BODY_TIMEOUT", "1h"),
        ("WEIR__BATCH__BODY_TIMEOUT", "1h"),
    ]);
    for path in ["/predict", "/batch/predict"] {
        let mut stream = begin_upload(&daemon, path, 1000, b"half");
        let reply = read(&mut stream);
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_too_slow"), "{path}: {}", reply.text());
    }
    let (picture, _) = sample();
    let mut stream = begin_upload(&daemon, "/predict", picture.len(), b"");
    // Longer than a window, with a pause that is a small part of it.
    for part in picture.chunks(picture.len().div_ceil(16)) {
        std::thread::sleep(Duration::from_millis(600));
        stream.write_all(part).unwrap();
    }
    assert_eq!(read(&mut stream).status, 200);
}

#[test]
fn one_address_gets_no_more_than_its_share_of_the_memory_for_bodies() {
    let daemon = Daemon::start(&[
        ("WEIR__HTTP__MAX_BODY", "1 MiB"),
        ("WEIR__HTTP__MAX_INFLIGHT", "4 MiB"),
        ("WEIR__HTTP__MAX_INFLIGHT_PER_ADDRESS", "2 MiB"),
    ]);
    // Two unfinished bodies use up the share of 127.0.0.1.
    let _stalled: Vec<_> = (0..2).map(|_| begin_upload(&daemon, "/predict", 1 << 20, &[7; 1000])).collect();
    // An earlier post would use the share of the second one.
    wait_until("both are in progress", || {
        metric(&daemon, "weir_body_memory_used_bytes") >= f64::from(2 << 20)
    });
    let picture = pictures::bmp(300, 300, 1);
    wait_until("the share is full", || daemon.post("/predict", &[], &picture).status == 429);
    let refused = daemon.post("/predict", &[], &picture);
    assert!(refused.text().contains("max_inflight_per_address"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    // Another address is served: all of 127.0.0.0/8 is this machine.
    let socket = connect_from([127, 0, 0, 2].into(), daemon.address);
    assert_eq!(post_on(socket, &picture), 200);
}

fn connect_from(from: std::net::IpAddr, to: std::net::SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

fn post_on(mut stream: TcpStream, body: &[u8]) -> u16 {
    let head = format!("POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // After a refusal before the body the connection may be closed.
    let _ = stream.write_all(body);
    read(&mut stream).status
}

#[test]
fn a_client_that_floods_the_lanes_does_not_block_others() {
    const FLOOD: usize = 24;
    let daemon = Daemon::start(&[("WEIR__ENGINE__LANES", "1"), ("WEIR__ENGINE__QUEUE", "8")]);
    let (address, over, number) = (daemon.address, AtomicBool::new(false), AtomicU32::new(0));
    let unique = || pictures::bmp(300, 300, number.fetch_add(1, Ordering::Relaxed));
    let flood = || {
        let mut statuses = Vec::new();
        while !over.load(Ordering::Relaxed) {
            statuses.push(post_on(connect_from([127, 0, 0, 2].into(), address), &unique()));
        }
        statuses
    };
    let (others, flooded) = std::thread::scope(|scope| {
        let flooding: Vec<_> = (0..FLOOD).map(|_| scope.spawn(flood)).collect();
        wait_until("the queue is full", || {
            post_on(connect_from([127, 0, 0, 2].into(), address), &unique()) == 429
        });
        let others: Vec<u16> = (0..40).map(|_| daemon.post("/predict", &[], &unique()).status).collect();
        over.store(true, Ordering::Relaxed);
        let flooded: Vec<u16> = flooding.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (others, flooded)
    });
    assert!(others.iter().all(|status| *status == 200), "{others:?}");
    assert!(flooded.iter().all(|status| [200, 429].contains(status)), "{flooded:?}");
    assert!(flooded.contains(&200) && flooded.contains(&429));
}

#[test]
fn a_client_that_stops_reading_loses_its_connection() {
    let daemon = Daemon::start(&[("WEIR__HTTP__MIN_RATE", "1 KiB"), ("WEIR__HTTP__RATE_WINDOW", "300ms")]);
    let mut stream = connect(daemon.address);
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // Responses accumulate until the socket buffers are full.
    let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(50);
    let mut rounds = 0;
    while stream.write_all(request.as_bytes()).is_ok() && rounds < 2000 {
        rounds += 1;
    }
    wait_until("the connection was closed", || {
        daemon.get("/metrics").text().contains("weir_http_connections_closed_total{reason=\"slowness\"} 1")
    });
    assert!(is_closed(&mut stream));
}

#[test]
fn idle_connections_make_room_for_new_ones() {
    let daemon = Daemon::start(&[
        ("WEIR__HTTP__MAX_CONNECTIONS", "8"),
        ("WEIR__HTTP__MAX_CONNECTIONS_PER_ADDRESS", "6"),
        ("WEIR__HTTP__HEADER_TIMEOUT", "1h"),
        ("WEIR__HTTP__IDLE_TIMEOUT", "1h"),
        ("WEIR__HTTP__RATE_WINDOW", "1h"),
        ("WEIR__HTTP__BODY_TIMEOUT", "1h"),
    ]);
    let mut idle: Vec<_> = (0..6).map(|_| connect(daemon.address)).collect();
    for _ in 0..12 {
        assert_eq!(daemon.get("/health/live").status, 200);
    }
    assert!(is_closed(&mut idle[0]), "the one that was idle longest went first");
    // Connections in use are not closed, and the address gets no new ones.
    let _busy: Vec<_> = (0..6).map(|_| begin_in_hand(&daemon)).collect();
    wait_until("the address is at its limit", || {
        let mut stream = connect(daemon.address);
        let _ =
            stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        read(&mut stream).status == 429
    });
    // The admin listener has a separate connection limit.
    assert_eq!(daemon.get_as_operator("/health/live").status, 200);
    assert_eq!(support::get(daemon.admin.unwrap(), "/predict").status, 404);
}

#[test]
fn the_soft_limit_of_open_files_is_raised_and_bounds_connections() {
    let data = tempfile::tempdir().unwrap();
    let program = weir();
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -Sn 64 && ulimit -Hn 400 && exec \"$1\" serve --listen 127.0.0.1:0 --data-dir \"$2\"",
            "sh",
        ])
        .arg(program.get_program())
        .arg(data.path());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("WEIR__LOG__FORMAT", "json").env("WEIR__HTTP__MAX_CONNECTIONS_PER_ADDRESS", "400");
    let daemon = Daemon::spawn(command, data);
    let metrics = daemon.get("/metrics").text();
    let limit = metrics.lines().find_map(|line| line.strip_prefix("weir_http_connections_limit ")).unwrap();
    let limit: usize = limit.parse().unwrap();
    assert!((50..=208).contains(&limit), "{limit}");
    // Far more than the soft limit, and every connection is served until the end.
    let idle: Vec<_> = (0..limit + 50).map(|_| connect(daemon.address)).collect();
    let (picture, _) = sample();
    assert_eq!(daemon.post("/predict", &[], &picture).status, 200);
    drop(idle);
}

#[test]
fn foreign_hosts_and_origins_are_refused() {
    let daemon = Daemon::start(&[
        ("WEIR__HTTP__ALLOWED_HOSTS", "weir.harbour.svc"),
        ("WEIR__HTTP__ALLOWED_ORIGINS", "https://board.example.org"),
    ]);
    let ask = |method: &str, headers: &str| {
        let request = format!("{method} /predict HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
        support::client::send(daemon.address, request.as_bytes())
    };
    let rebound = ask("POST", "host: evil.example\r\ncontent-length: 0\r\n");
    assert_eq!((rebound.status, rebound.code().as_str()), (421, "host_refused"));
    let foreign = ask("POST", "host: localhost\r\norigin: http://evil.example\r\ncontent-length: 0\r\n");
    assert_eq!((foreign.status, foreign.code().as_str()), (403, "origin_refused"));
    assert!(foreign.header("access-control-allow-origin").is_none());
    let (picture, _) = sample();
    let page = ("origin", "https://board.example.org");
    let allowed = daemon.post("/predict", &[page], &picture);
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin").as_deref(), Some(page.1));
    assert_eq!(allowed.header("vary").as_deref(), Some("Origin"));
    let preflight = ask(
        "OPTIONS",
        "host: weir.harbour.svc:8080\r\norigin: https://board.example.org\r\naccess-control-request-method: POST\r\n",
    );
    assert_eq!(preflight.status, 204);
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
    assert_eq!(ask("DELETE", "host: localhost\r\n").header("allow").as_deref(), Some("POST, OPTIONS"));
}

#[test]
fn details_are_for_the_operator() {
    let env =
        [("WEIR__NODE__NAME", "secret-dock"), ("WEIR__ADMIN__TOKEN", "0123456789abcdef0123456789abcdef")];
    let daemon = Daemon::start(&env);
    let open = daemon.get("/health");
    assert_eq!(open.json()["status"], "ready");
    assert!(
        !open.text().contains("secret-dock") && open.json()["device"]["reason"].is_null(),
        "{}",
        open.text()
    );
    let detailed = daemon.get_as_operator("/health");
    assert_eq!(detailed.json()["node"], "secret-dock");
    assert!(detailed.json()["device"]["reason"].is_string());
    let with_token = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                      authorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n";
    assert_eq!(support::client::send(daemon.address, with_token.as_bytes()).json()["node"], "secret-dock");
}

#[test]
fn the_data_directory_is_made_for_this_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("new/data");
    let mut command = support::serve(&data);
    command.env("WEIR__LOG__FORMAT", "json");
    let daemon = Daemon::spawn(command, parent);
    let mode = std::fs::metadata(&data).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(daemon);
}

#[test]
fn compressed_bodies_are_decompressed_within_the_same_limits() {
    let daemon = Daemon::start(&[("WEIR__HTTP__MAX_BODY", "4 MiB")]);
    let (picture, label) = sample();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let packed = [("content-encoding", "gzip")];
    let reply = daemon.post("/predict", &packed, &gzip(&picture));
    assert_eq!(reply.json()["species"], label.as_str(), "{}", reply.text());
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(&picture).unwrap();
    let reply = daemon.post("/predict", &[("content-encoding", "deflate")], &zlib.finish().unwrap());
    assert_eq!(reply.json()["species"], label.as_str(), "{}", reply.text());
    // 256 MiB of zeroes in a megabyte.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeroes = vec![0; 1 << 20];
    (0..256).for_each(|_| bomb.write_all(&zeroes).unwrap());
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 4 << 20);
    let reply = daemon.post("/predict", &packed, &bomb);
    assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
    let cut = gzip(&picture);
    for broken in [&cut[..cut.len() / 2], &picture[..]] {
        let reply = daemon.post("/predict", &packed, broken);
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_encoding"), "{}", reply.text());
    }
    let reply = daemon.post("/predict", &[("content-encoding", "br")], &picture);
    assert_eq!((reply.status, reply.code().as_str()), (415, "unsupported_encoding"));
    assert_eq!(daemon.events().len(), 2);
}

#[test]
fn bodies_that_cameras_and_programs_send_are_accepted() {
    let daemon = Daemon::start(&[]);
    let (picture, label) = sample();
    let plain = base64::engine::general_purpose::STANDARD.encode(&picture);
    let lines: Vec<_> = plain.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let bare = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&picture);
    for image in [
        lines.join("\\r\\n"),
        base64::engine::general_purpose::URL_SAFE.encode(&picture),
        bare.clone(),
        format!("data:image/jpeg;base64,{}", lines.join("\\n")),
    ] {
        let body = format!("\u{feff} {{\"image\": \"{image}\"}}");
        let reply = daemon.post("/predict", &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(reply.json()["species"], label.as_str(), "{}: {}", &image[..40], reply.text());
    }
    for field in ["file", "files", "image"] {
        let mut form =
            format!("--edge\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"a.jpg\"\r\n\r\n")
                .into_bytes();
        form.extend_from_slice(&picture);
        form.extend_from_slice(b"\r\n--edge--\r\n");
        let headers = [("content-type", "multipart/form-data ; boundary=edge")];
        let reply = daemon.post("/predict", &headers, &form);
        assert_eq!(reply.json()["species"], label.as_str(), "{field}: {}", reply.text());
        let reply = daemon.post("/batch/predict", &headers, &form);
        assert_eq!(reply.status, 202, "{field}: {}", reply.text());
    }
    let urls = "\u{feff}{\"image_urls\": [\"http://127.0.0.1:9/a.jpg\"]}";
    let headers = [("content-type", "application/json ; charset=utf-8")];
    assert_eq!(daemon.post("/batch/predict", &headers, urls.as_bytes()).status, 202);
}

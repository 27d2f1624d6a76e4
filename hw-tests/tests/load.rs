//! The load generator against small servers that respond correctly, early, late, in pieces or not at all.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod server;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hw_tests::frames::{self, Frame, Size};
use hw_tests::load::{Options, Report, Spec, Target, requests};
use server::Server;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

fn big_frame() -> Frame {
    // Larger than both sockets' buffers, so that it cannot be sent before it is read.
    Frame { name: "big".into(), bytes: vec![7; 64 << 20] }
}

fn spec(server: &Server, frames: &[Frame], options: &Options) -> Spec {
    let target = Target::local(server.port, "/predict");
    Spec {
        warmup: Duration::ZERO,
        duration: Duration::from_millis(600),
        timeout: Duration::from_secs(20),
        ..Spec::new(target.clone(), requests(&target, frames, options).unwrap())
    }
}

fn small(server: &Server) -> Spec {
    spec(server, &[Frame { name: "small".into(), bytes: b"picture".to_vec() }], &Options::default())
}

/// A number of requests, in a window that is long enough for them on a busy machine.
fn limited(requests: u64, spec: Spec) -> Spec {
    Spec { max_requests: Some(requests), duration: Duration::from_secs(60), ..spec }
}

fn count(report: &Report, status: u16) -> u64 {
    report.statuses.get(&status).map_or(0, |latency| latency.count)
}

#[test]
fn a_closed_loop_posts_whole_bodies_over_few_connections() {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let bodies = seen.clone();
    let server = Server::start(move |exchange| {
        exchange.read_head()?;
        let body = exchange.read_body()?;
        assert_eq!(turbojpeg::read_header(&body).unwrap().width, 640);
        bodies.lock().unwrap().insert(body);
        exchange.send(OK)
    });
    let options = Options { unique: true, ..Options::default() };
    let frames = frames::render(Size::Vga, 2).unwrap();
    let load = Spec { concurrency: 3, ..limited(50, spec(&server, &frames, &options)) };
    let report = load.run().unwrap();
    assert_eq!((report.requests, report.successes, count(&report, 200)), (50, 50, 50));
    assert_eq!(report.trouble(), None);
    assert_eq!(report.reconnects, 0);
    assert_eq!(server.connections.load(Ordering::Relaxed), 3);
    assert_eq!(seen.lock().unwrap().len(), 50, "every body differs");
}

#[test]
fn a_repeated_body_stays_the_same() {
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let bodies = seen.clone();
    let server = Server::start(move |exchange| {
        exchange.read_head()?;
        bodies.lock().unwrap().insert(exchange.read_body()?);
        exchange.send(OK)
    });
    limited(20, small(&server)).run().unwrap();
    assert_eq!(*seen.lock().unwrap(), HashSet::from([b"picture".to_vec()]));
}

#[test]
fn a_reply_before_the_body_is_sent_counts_and_is_quick() {
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.send(b"HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
        exchange.drain_and_close()
    });
    let load = spec(&server, &[big_frame()], &Options::default());
    let report = Spec { concurrency: 1, ..limited(3, load) }.run().unwrap();
    assert_eq!(count(&report, 429), 3, "{report:?}");
    assert_eq!((report.early_replies, report.reconnects, report.successes), (3, 2, 0));
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

#[test]
fn after_an_early_reply_the_body_is_finished_where_the_server_keeps_the_connection() {
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")?;
        exchange.read_body().map(drop)
    });
    let load = spec(&server, &[big_frame()], &Options::default());
    let report = Spec { concurrency: 1, ..limited(3, load) }.run().unwrap();
    assert_eq!((count(&report, 413), report.early_replies, report.reconnects), (3, 3, 0), "{report:?}");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[test]
fn a_closed_loop_backs_off_after_a_refusal() {
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.read_body()?;
        exchange.send(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")
    });
    let report = Spec { concurrency: 1, duration: Duration::from_secs(2), ..small(&server) }.run().unwrap();
    let refused = count(&report, 429);
    assert!((5..=200).contains(&refused), "{refused} requests in 2 s with a pause of 10 ms");
}

#[test]
fn a_server_that_closes_after_each_reply_is_reconnected_to() {
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.read_body()?;
        exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")?;
        Err(std::io::ErrorKind::ConnectionAborted.into())
    });
    let report = Spec { concurrency: 1, ..limited(10, small(&server)) }.run().unwrap();
    assert_eq!((count(&report, 200), report.reconnects), (10, 9), "{report:?}");
    assert_eq!(report.trouble(), None);
}

#[test]
fn a_server_that_hangs_up_is_a_reset() {
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.read_body()?;
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort")?;
        Err(std::io::ErrorKind::ConnectionAborted.into())
    });
    let report = Spec { concurrency: 1, ..limited(4, small(&server)) }.run().unwrap();
    assert_eq!(report.failures["reset"].count, 4, "{report:?}");
    assert!(report.ok.is_none() && report.statuses.is_empty());
}

#[test]
fn a_server_that_never_answers_is_a_timeout() {
    let server = Server::start(server::Exchange::read_to_end);
    let load = Spec {
        concurrency: 2,
        timeout: Duration::from_millis(100),
        duration: Duration::from_secs(3),
        ..small(&server)
    };
    let start = Instant::now();
    let report = load.run().unwrap();
    assert!(report.failures["timeout"].count >= 6, "{report:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "it ends by itself");
}

#[test]
fn a_refused_connection_is_counted_and_not_retried_immediately() {
    let server = Server::start(|_| Ok(()));
    let mut load = small(&server);
    load.target = Target::local(server::free_port(), "/");
    load.concurrency = 1;
    load.duration = Duration::from_secs(2);
    let report = load.run().unwrap();
    let refused = report.failures["connect"].count;
    assert!((5..=200).contains(&refused), "{refused} attempts in 2 s with a pause of 10 ms");
}

#[test]
fn chunked_replies_in_pieces_are_read() {
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.read_body()?;
        for piece in [
            "HTTP/1.1 200 OK\r\nTransfer-Enc",
            "oding: chunked\r\n\r\n3\r\n{\"a",
            "\r\n3\r\n\":1\r\n1\r\n}\r\n0\r",
            "\n\r\n",
        ] {
            exchange.send(piece.as_bytes())?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    });
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let sink = bodies.clone();
    let load = Spec {
        on_reply: Some(Arc::new(move |reply| sink.lock().unwrap().push(reply.body.clone()))),
        ..limited(5, small(&server))
    };
    assert_eq!(load.run().unwrap().trouble(), None);
    assert_eq!(*bodies.lock().unwrap(), vec![b"{\"a\":1}".to_vec(); 5]);
}

/// Takes half a second per request: much longer than a busy machine keeps a thread waiting.
fn slow_server() -> Server {
    Server::start(|exchange| {
        exchange.read_head()?;
        exchange.read_body()?;
        std::thread::sleep(Duration::from_millis(500));
        exchange.send(OK)
    })
}

#[test]
fn a_closed_loop_measures_from_the_sending() {
    let start = Instant::now();
    let report =
        Spec { concurrency: 1, duration: Duration::from_secs(6), ..small(&slow_server()) }.run().unwrap();
    let elapsed = start.elapsed().as_secs_f64() * 1000.0;
    let latency = report.ok.unwrap();
    assert!(latency.p50 >= 500.0, "{latency:?}");
    assert!((1..=12).contains(&latency.count), "{latency:?}");
    // One client has one request at a time, so its latencies do not overlap. The histogram is exact to three digits.
    assert!(latency.mean * latency.count as f64 <= elapsed * 1.001, "{latency:?} in {elapsed} ms");
}

#[test]
fn an_open_loop_measures_from_the_intended_start_and_reports_unsent_requests() {
    let load =
        Spec { concurrency: 1, rate: Some(4.0), duration: Duration::from_secs(10), ..small(&slow_server()) };
    let report = load.run().unwrap();
    let latency = report.ok.unwrap();
    // 4 per second are due and one client sends at most 2 per second: the last of them is 5 s late. A slow machine
    // sends fewer, later.
    assert!(latency.p50 > 1200.0 && latency.max > 3000.0, "{latency:?}");
    assert!(report.unsent >= 15, "{} unsent", report.unsent);
    assert_eq!(report.requests + report.unsent, 40);
}

#[test]
fn an_open_loop_keeps_its_rate_when_the_server_keeps_up() {
    // 40 requests are due within the first half of the time.
    let load = Spec {
        concurrency: 8,
        rate: Some(8.0),
        max_requests: Some(40),
        duration: Duration::from_secs(10),
        ..small(&slow_server())
    };
    let report = load.run().unwrap();
    assert_eq!((report.requests, report.unsent), (40, 0));
    assert!((39.0 / 8.0..10.0).contains(&report.seconds), "{} s", report.seconds);
    let latency = report.ok.unwrap();
    // If requests waited for each other, the median would be 8 s.
    assert!(latency.p50 >= 500.0 && latency.p50 < 3000.0, "{latency:?}");
}

#[test]
fn the_warm_up_is_not_counted() {
    let load = Spec {
        concurrency: 1,
        warmup: Duration::from_secs(4),
        duration: Duration::from_secs(2),
        ..small(&slow_server())
    };
    let report = load.run().unwrap();
    let counted = count(&report, 200);
    assert!(report.requests >= counted + 4, "{} begun, {counted} counted", report.requests);
    assert!((report.seconds - 2.0).abs() < 0.01);
}

#[test]
fn load_can_be_stopped() {
    let (first, answered) = std::sync::mpsc::channel();
    let load = Spec {
        duration: Duration::from_secs(600),
        on_reply: Some(Arc::new(move |_| {
            let _ = first.send(());
        })),
        ..small(&slow_server())
    };
    let stop = load.stop.clone();
    let start = Instant::now();
    let running = std::thread::spawn(|| load.run());
    answered.recv_timeout(Duration::from_secs(30)).unwrap();
    stop.store(true, Ordering::Relaxed);
    let report = running.join().unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(report.successes > 0 && report.seconds < 30.0, "{report:?}");
}

#[test]
fn nothing_to_send_is_an_error() {
    let target = Target::local(1, "/");
    let empty = Spec::new(target.clone(), requests(&target, &[], &Options::default()).unwrap());
    assert!(empty.run().unwrap_err().to_string().contains("nothing to send"));
    let png = Frame { name: "a.png".into(), bytes: b"\x89PNG".to_vec() };
    let unique = Options { unique: true, ..Options::default() };
    let error = requests(&target, &[png], &unique).unwrap_err();
    assert!(format!("{error:#}").contains("a.png: not a JPEG"), "{error:#}");
}

#[test]
fn the_cpu_time_of_the_server_is_reported() {
    use hw_tests::load::Watch;
    use hw_tests::process::own_cpu_time;
    let server = Server::start(|exchange| {
        exchange.read_head()?;
        exchange.read_body()?;
        // By CPU time, of which a thread gets less than wall clock time on a busy machine.
        let start = own_cpu_time();
        while own_cpu_time() - start < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        exchange.send(OK)
    });
    // The server runs in this process, whose CPU time is measured.
    let watch = Some(Watch { pid: std::process::id(), children: false });
    let report =
        Spec { concurrency: 1, watch, duration: Duration::from_secs(3), ..small(&server) }.run().unwrap();
    let usage = report.usage.unwrap();
    assert!(usage.ok > 10 && usage.cpu_ms_per_ok() > 2.0, "{usage:?}");
    assert!(usage.memory.resident > 1 << 20);
}

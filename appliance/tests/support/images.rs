//! A web server of pictures, on loopback: good ones, and the ways in which a URL can be bad.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::pictures;

/// `/good/N.bmp` is a picture of its own for every N; `/text` is none; anything else is 404.
pub struct Images {
    pub address: SocketAddr,
    served: Arc<AtomicUsize>,
}

impl Images {
    pub fn serve() -> Self {
        Self::slow(Duration::ZERO)
    }

    /// Each picture takes this long.
    pub fn slow(pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let count = Arc::clone(&count);
                std::thread::spawn(move || answer(stream, &count, pause));
            }
        });
        Self { address, served }
    }

    pub fn good(&self, n: usize) -> String {
        format!("http://{}/good/{n}.bmp", self.address)
    }

    pub fn missing(&self, n: usize) -> String {
        format!("http://{}/missing/{n}.bmp", self.address)
    }

    pub fn text(&self) -> String {
        format!("http://{}/text", self.address)
    }

    /// Pictures served so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

fn answer(mut stream: TcpStream, served: &AtomicUsize, pause: Duration) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // Or every answer would wait for an acknowledgement of its head.
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut request = String::new();
        if !reader.read_line(&mut request).is_ok_and(|read| read > 0) {
            return;
        }
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            line.clear();
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let good = path.strip_prefix("/good/").and_then(|name| name.strip_suffix(".bmp")?.parse().ok());
        let (status, body) = match good {
            Some(n) => {
                std::thread::sleep(pause);
                served.fetch_add(1, Ordering::Relaxed);
                ("200 OK", pictures::bmp(32, 32, n))
            }
            None if path == "/text" => ("200 OK", b"no picture at all".to_vec()),
            None => ("404 Not Found", b"nothing".to_vec()),
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}

//! Test pictures, valid and malicious, and a web server for pictures on loopback with the ways in which a URL can fail.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// `/good/N.bmp` is a different picture for every N; `/text` is not a picture; anything else is 404.
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
    // Otherwise every response would wait for an acknowledgement of its head.
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
                ("200 OK", bmp(32, 32, n))
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

/// A BMP of one colour with a pattern in it; the bytes differ for every seed.
pub fn bmp(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let row = (width as usize * 3).div_ceil(4) * 4;
    let pixels = row * height as usize;
    let mut file = Vec::with_capacity(54 + pixels);
    file.extend_from_slice(b"BM");
    file.extend_from_slice(&(54 + pixels as u32).to_le_bytes());
    file.extend_from_slice(&[0; 4]);
    file.extend_from_slice(&54u32.to_le_bytes());
    file.extend_from_slice(&40u32.to_le_bytes());
    file.extend_from_slice(&width.to_le_bytes());
    file.extend_from_slice(&height.to_le_bytes());
    file.extend_from_slice(&[1, 0, 24, 0]);
    file.extend_from_slice(&[0; 24]);
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    file.extend((0..pixels).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    }));
    file
}

/// A PNG whose header declares this size, with a few bytes of data.
pub fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut ihdr = width.to_be_bytes().to_vec();
    ihdr.extend_from_slice(&height.to_be_bytes());
    ihdr.extend_from_slice(&[8, 2, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &ihdr);
    chunk(&mut file, b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]);
    chunk(&mut file, b"IEND", &[]);
    file
}

/// A valid PNG of a gradient, 3 x 8 bits, its data stored without compression.
pub fn png(side: u8) -> Vec<u8> {
    let mut raw = Vec::new();
    for y in 0..side {
        raw.push(0);
        raw.extend((0..side).flat_map(|x| [x, y, x ^ y]));
    }
    let length = raw.len() as u16;
    let mut data = vec![0x78, 0x01, 1];
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(&(!length).to_le_bytes());
    data.extend_from_slice(&raw);
    let (a, b) = raw.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    data.extend_from_slice(&((b << 16) | a).to_be_bytes());
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut file, b"IHDR", &[0, 0, 0, side, 0, 0, 0, side, 8, 2, 0, 0, 0]);
    chunk(&mut file, b"IDAT", &data);
    chunk(&mut file, b"IEND", &[]);
    file
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend_from_slice(&(data.len() as u32).to_be_bytes());
    let start = file.len();
    file.extend_from_slice(kind);
    file.extend_from_slice(data);
    let crc = crc32(&file[start..]);
    file.extend_from_slice(&crc.to_be_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
        crc
    })
}

/// A JPEG whose header declares this size, progressive or not, with this many empty scans.
pub fn jpeg_header(width: u16, height: u16, progressive: bool, scans: usize) -> Vec<u8> {
    let mut file = vec![0xff, 0xd8];
    file.extend_from_slice(&[0xff, 0xdb, 0, 67, 0]);
    file.extend_from_slice(&[16; 64]);
    file.extend_from_slice(&[0xff, if progressive { 0xc2 } else { 0xc0 }, 0, 17, 8]);
    file.extend_from_slice(&height.to_be_bytes());
    file.extend_from_slice(&width.to_be_bytes());
    file.extend_from_slice(&[3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0]);
    // A table with one code of one bit, enough to be well-formed.
    file.extend_from_slice(&[0xff, 0xc4, 0, 20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for _ in 0..scans {
        file.extend_from_slice(&[0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0x55]);
    }
    file.extend_from_slice(&[0xff, 0xd9]);
    file
}

//! A plain HTTP/1.1 client over a socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The error's code; checks the common format of errors.
    pub fn code(&self) -> String {
        let json = self.json();
        assert!(json["error"].as_str().is_some_and(|e| !e.is_empty()), "no sentence in {json}");
        json["code"].as_str().unwrap_or_else(|| panic!("no code in {json}")).to_owned()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
}

pub fn delete(address: SocketAddr, path: &str) -> Reply {
    send(
        address,
        format!("DELETE {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes(),
    )
}

pub fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = format!("{request}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    send(address, &bytes)
}

/// Sends bytes unchanged and reads one response.
pub fn send(address: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = connect(address);
    // A server may respond and close before it has read everything.
    let _ = stream.write_all(request);
    read(&mut stream)
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // Longer than any deadline that a test sets.
    stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Reads one response with a Content-Length.
pub fn read(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut block = [0; 16 << 10];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let reply = Reply { status: head[9..12].parse().unwrap(), head, body: bytes[end + 4..].to_vec() };
            let length = reply.header("content-length").map_or(0, |v| v.parse::<usize>().unwrap());
            if reply.body.len() >= length {
                return reply;
            }
        }
        match stream.read(&mut block) {
            Ok(0) => panic!("the server closed after {:?}", String::from_utf8_lossy(&bytes)),
            Ok(n) => bytes.extend_from_slice(&block[..n]),
            Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
}

//! Reads HTTP/1.1 responses out of a stream of bytes that arrives in pieces.

use httparse::{EMPTY_HEADER, Header, Status};

/// Largest head and body of a response.
const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: usize = 16 << 20;
const MAX_HEADERS: usize = 64;

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Whether the server accepts another request on this connection.
    pub keep_alive: bool,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
}

/// Why bytes are not an acceptable response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Not HTTP/1.x, with the reason.
    Malformed(String),
    /// The connection ended inside a response.
    Truncated,
    /// Head or body above the bound, in bytes.
    TooLong(usize),
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed response: {what}"),
            Self::Truncated => f.write_str("the connection ended inside a response"),
            Self::TooLong(bound) => write!(f, "a response over the bound of {bound} bytes"),
        }
    }
}

impl std::error::Error for ParseError {}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    status: u16,
    keep_alive: bool,
    framing: Framing,
}

/// Parses responses from received bytes.
#[derive(Debug, Default)]
pub struct ResponseReader {
    bytes: Vec<u8>,
    /// The head that was read and removed from `bytes`.
    head: Option<Head>,
    /// The chunks so far of a chunked body.
    chunks: Vec<u8>,
}

impl ResponseReader {
    /// Where received bytes are to be appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Whether a response has begun to arrive.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.head.is_some() || !self.bytes.is_empty()
    }

    /// The next whole response, if there is one. Interim (1xx) responses are skipped.
    ///
    /// # Errors
    /// When the bytes are not an HTTP/1.x response or exceed a limit.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, ParseError> {
        let Some(head) = self.read_head()? else { return Ok(None) };
        let body = match head.framing {
            Framing::Length(length) if length > MAX_BODY => return Err(ParseError::TooLong(MAX_BODY)),
            Framing::Length(length) if self.bytes.len() < length => return Ok(None),
            Framing::Length(length) => self.bytes.drain(..length).collect(),
            Framing::Chunked if self.read_chunks()? => std::mem::take(&mut self.chunks),
            Framing::UntilClose if self.bytes.len() > MAX_BODY => return Err(ParseError::TooLong(MAX_BODY)),
            Framing::Chunked | Framing::UntilClose => return Ok(None),
        };
        self.head = None;
        Ok(Some(Reply { status: head.status, keep_alive: head.keep_alive, body }))
    }

    /// The response that the end of the stream completes.
    ///
    /// # Errors
    /// `ParseError::Truncated` when the response is incomplete.
    pub fn end(&mut self) -> Result<Reply, ParseError> {
        match self.head.take() {
            Some(Head { status, framing: Framing::UntilClose, .. }) => {
                Ok(Reply { status, keep_alive: false, body: std::mem::take(&mut self.bytes) })
            }
            _ => Err(ParseError::Truncated),
        }
    }

    fn read_head(&mut self) -> Result<Option<Head>, ParseError> {
        while self.head.is_none() {
            let mut headers = [EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            let parsed =
                response.parse(&self.bytes).map_err(|error| ParseError::Malformed(error.to_string()))?;
            let Status::Complete(length) = parsed else {
                return if self.bytes.len() > MAX_HEAD {
                    Err(ParseError::TooLong(MAX_HEAD))
                } else {
                    Ok(None)
                };
            };
            let status = response.code.unwrap_or(0);
            let head = if (100..200).contains(&status) {
                None
            } else {
                Some(understand(status, response.version == Some(1), response.headers)?)
            };
            self.bytes.drain(..length);
            self.head = head;
        }
        Ok(self.head)
    }

    /// Moves whole chunks from `bytes` to `chunks`; true when the last one and its trailers are read.
    fn read_chunks(&mut self) -> Result<bool, ParseError> {
        let malformed = || ParseError::Malformed("bad chunk".into());
        loop {
            let parsed = httparse::parse_chunk_size(&self.bytes).map_err(|_| malformed())?;
            let Status::Complete((line, size)) = parsed else { return Ok(false) };
            if size == 0 {
                let mut trailers = [EMPTY_HEADER; MAX_HEADERS];
                let parsed = httparse::parse_headers(&self.bytes[line..], &mut trailers);
                let Status::Complete((length, _)) = parsed.map_err(|_| malformed())? else {
                    return Ok(false);
                };
                self.bytes.drain(..line + length);
                return Ok(true);
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size.saturating_add(self.chunks.len()) > MAX_BODY {
                return Err(ParseError::TooLong(MAX_BODY));
            }
            let end = line + size;
            if self.bytes.len() < end + 2 {
                return Ok(false);
            }
            if &self.bytes[end..end + 2] != b"\r\n" {
                return Err(malformed());
            }
            self.chunks.extend_from_slice(&self.bytes[line..end]);
            self.bytes.drain(..end + 2);
        }
    }
}

/// Framing of the body and persistence of the connection by the headers (RFC 9112, sections 6.3 and 9.3).
fn understand(status: u16, http_1_1: bool, headers: &[Header<'_>]) -> Result<Head, ParseError> {
    let values = |name: &'static str| {
        let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.filter_map(|header| std::str::from_utf8(header.value).ok()).flat_map(|value| value.split(','))
    };
    let says = |name, word: &str| values(name).any(|value| value.trim().eq_ignore_ascii_case(word));
    let keep_alive = if http_1_1 { !says("connection", "close") } else { says("connection", "keep-alive") };
    let framing = if matches!(status, 204 | 304) {
        Framing::Length(0)
    } else if says("transfer-encoding", "chunked") {
        Framing::Chunked
    } else if let Some(length) = values("content-length").next() {
        let bad = || ParseError::Malformed(format!("Content-Length {length:?}"));
        Framing::Length(length.trim().parse().map_err(|_| bad())?)
    } else {
        Framing::UntilClose
    };
    Ok(Head { status, keep_alive: keep_alive && framing != Framing::UntilClose, framing })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of cutting the bytes in two must give the same replies.
    fn read(bytes: &[u8]) -> Vec<Reply> {
        let mut results = Vec::new();
        for cut in 0..bytes.len() {
            let mut reader = ResponseReader::default();
            let mut replies = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.buffer().extend_from_slice(part);
                while let Some(reply) = reader.next_reply().unwrap() {
                    replies.push(reply);
                }
            }
            assert!(!reader.begun());
            results.push(replies);
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        results.swap_remove(0)
    }

    fn reply(status: u16, keep_alive: bool, body: &str) -> Reply {
        Reply { status, keep_alive, body: body.into() }
    }

    fn fails(bytes: &[u8]) -> ParseError {
        let mut reader = ResponseReader::default();
        reader.buffer().extend_from_slice(bytes);
        reader.next_reply().unwrap_err()
    }

    #[test]
    fn a_body_of_declared_length() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(read(bytes), [reply(200, true, "hello")]);
    }

    #[test]
    fn chunks_with_extension_and_trailer() {
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n\
            3;note=x\r\nabc\r\nA\r\n0123456789\r\n0\r\nDigest: x\r\n\r\n";
        assert_eq!(read(bytes), [reply(200, true, "abc0123456789")]);
    }

    #[test]
    fn interim_responses_are_passed_over_and_responses_follow_each_other() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\
            Retry-After: 1\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: Close\r\n\r\n";
        assert_eq!(read(bytes), [reply(429, true, ""), reply(204, false, "")]);
    }

    #[test]
    fn http_1_0_closes_unless_it_says_otherwise() {
        assert!(!read(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")[0].keep_alive);
        assert!(
            read(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n")[0].keep_alive
        );
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let mut reader = ResponseReader::default();
        reader.buffer().extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\nto the end");
        assert_eq!(reader.next_reply().unwrap(), None);
        assert_eq!(reader.end().unwrap(), reply(200, false, "to the end"));
    }

    #[test]
    fn an_early_end_is_truncation() {
        for part in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"] {
            let mut reader = ResponseReader::default();
            reader.buffer().extend_from_slice(part.as_bytes());
            assert_eq!(reader.next_reply().unwrap(), None);
            assert_eq!(reader.end().unwrap_err(), ParseError::Truncated, "{part:?}");
        }
    }

    #[test]
    fn what_is_not_http_is_malformed() {
        let chunk = |rest: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
        for bytes in [
            "SSH-2.0-OpenSSH\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_owned(),
            chunk("xyz\r\n"),
            chunk("3\r\nabcdef"),
        ] {
            assert!(matches!(fails(bytes.as_bytes()), ParseError::Malformed(_)), "{bytes:?}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
        assert_eq!(fails(length.as_bytes()), ParseError::TooLong(MAX_BODY));
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n";
        assert_eq!(fails(chunk), ParseError::TooLong(MAX_BODY));
        let head = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(fails(head.as_bytes()), ParseError::TooLong(MAX_HEAD));
    }
}

//! The body of a request on its way to a route: minimum rate, decompression, share of its address.

use std::error::Error;
use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::connections::Share;
use crate::pace::{Pace, Rate};

/// Bytes decompressed at once.
const BLOCK_BYTES: usize = 64 << 10;

/// Why a body was cut off.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("the body arrives more slowly than {} bytes a second over {} s (http.min_rate, http.rate_window)", .0.bytes, .0.window.as_secs_f32())]
    TooSlow(Rate),
    #[error("the body can't be decompressed according to its Content-Encoding: {0}")]
    Encoding(String),
    #[error(
        "the bodies of this address's requests have more than {limit} bytes (http.max_inflight_per_address); try again"
    )]
    AddressFull { limit: usize },
    #[error("{0}")]
    Broken(String),
}

impl TransferError {
    /// The transfer error inside of an error, at any depth.
    pub(super) fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

/// Content-Encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Deflate,
}

/// An address's share of the memory for bodies.
pub(super) struct AddressShare {
    pub(super) share: Share,
    pub(super) limit: usize,
    /// Content-Length; reserved when the first bytes arrive, like the memory.
    pub(super) declared: usize,
}

/// The body that a route reads.
pub(super) struct Inbound {
    body: Incoming,
    rate: Rate,
    pace: Pace,
    deadline: Option<Pin<Box<Sleep>>>,
    unpacking: Option<Unpacking>,
    share: Option<AddressShare>,
    bytes: usize,
}

enum Unpacking {
    Gzip(Box<MultiGzDecoder<Feed>>),
    Deflate(Box<ZlibDecoder<Feed>>),
}

/// Received bytes that are not decompressed yet.
#[derive(Default)]
struct Feed {
    chunk: Bytes,
    ended: bool,
}

impl Inbound {
    pub(super) fn new(body: Incoming, rate: Rate, coding: Coding, share: Option<AddressShare>) -> Self {
        let unpacking = match coding {
            Coding::Identity => None,
            Coding::Gzip => Some(Unpacking::Gzip(Box::new(MultiGzDecoder::new(Feed::default())))),
            Coding::Deflate => Some(Unpacking::Deflate(Box::new(ZlibDecoder::new(Feed::default())))),
        };
        Self { body, rate, pace: Pace::new(rate), deadline: None, unpacking, share, bytes: 0 }
    }

    /// The next frame of the connection.
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TransferError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.deadline = None;
            let frame = frame.transpose().map_err(|e| TransferError::Broken(e.to_string()))?;
            let bytes = frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
            // The last bytes need not fill a window.
            if frame.is_some() && self.pace.moved(bytes, Instant::now()).is_err() {
                return Poll::Ready(Some(Err(TransferError::TooSlow(self.rate))));
            }
            return Poll::Ready(frame.map(Ok));
        }
        loop {
            let Some(end) = self.pace.wait(Instant::now()) else { return Poll::Pending };
            let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(end)));
            ready!(deadline.as_mut().poll(cx));
            self.deadline = None;
            if self.pace.check(Instant::now()).is_err() {
                return Poll::Ready(Some(Err(TransferError::TooSlow(self.rate))));
            }
        }
    }

    /// The next decompressed bytes.
    fn poll_unpacked(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TransferError>>> {
        loop {
            let Some(unpacking) = &mut self.unpacking else { return self.poll_paced(cx) };
            let mut block = vec![0; BLOCK_BYTES];
            match unpacking.read(&mut block) {
                Ok(0) => return Poll::Ready(None),
                Ok(count) => {
                    block.truncate(count);
                    return Poll::Ready(Some(Ok(Frame::data(block.into()))));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Some(Err(TransferError::Encoding(error.to_string())))),
            }
            let frame = ready!(self.poll_paced(cx)).transpose()?;
            let Some(unpacking) = &mut self.unpacking else { continue };
            let feed = unpacking.feed();
            match frame.map(Frame::into_data) {
                Some(Ok(chunk)) => feed.chunk = chunk,
                Some(Err(_trailers)) => {}
                None => feed.ended = true,
            }
        }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = TransferError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransferError>>> {
        // A small body may decompress to a large one without ever waiting for the connection.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        let frame = ready!(self.poll_unpacked(cx)).transpose()?;
        turn.made_progress();
        self.bytes += frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let bytes = self.bytes;
        if let Some(of) = &mut self.share
            && bytes > 0
            && !of.share.grow_to(bytes.max(of.declared), of.limit)
        {
            return Poll::Ready(Some(Err(TransferError::AddressFull { limit: of.limit })));
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.unpacking.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.unpacking.is_none() { self.body.size_hint() } else { SizeHint::default() }
    }
}

impl Unpacking {
    fn feed(&mut self) -> &mut Feed {
        match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        }
    }
}

impl Read for Unpacking {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(block),
            Self::Deflate(decoder) => decoder.read(block),
        }
    }
}

impl Read for Feed {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(block)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }
}

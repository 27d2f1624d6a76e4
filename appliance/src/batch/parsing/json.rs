//! The JSON form of a batch, read without holding the list of URLs in memory: each is written to a file at once.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::options::{BatchOptions, OptionSource};
use super::urls::{MAX_URL_BYTES, UrlList, UrlWriter};
use super::{IntakeBounds, IntakeError};
use crate::batch::spool::Spool;

/// Longest string as written: a URL of which every byte is escaped as `\u00XX`.
const MAX_STRING_BYTES: usize = 6 * MAX_URL_BYTES;

const FIELDS: &[&str] = &["image_urls", "request_id", "camera", "top_k"];

/// Reads `{"image_urls": [...], "request_id"?, "camera"?, "top_k"?}`, fields in any order; blocking.
pub(super) fn read(
    body: impl Read,
    spool: &Spool,
    bounds: IntakeBounds,
) -> Result<(BatchOptions, UrlList), IntakeError> {
    let (bounded, too_long) = BoundedStrings::new(body, MAX_STRING_BYTES);
    let reader = BufReader::with_capacity(64 << 10, bounded);
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut sink = Sink {
        urls: UrlWriter::new(spool, bounds.max_images)?,
        seen_urls: false,
        options: BatchOptions::default(),
        labels: bounds.labels,
        refusal: None,
    };
    let parsed = json.deserialize_map(Body(&mut sink)).and_then(|()| json.end());
    if let Some(refusal) = sink.refusal {
        return Err(refusal);
    }
    match parsed {
        Ok(()) if !sink.seen_urls => Err(IntakeError::NoImages { what: "the JSON body has no image_urls" }),
        Ok(()) if sink.urls.count() == 0 => Err(IntakeError::NoImages { what: "image_urls is empty" }),
        Ok(()) => Ok((sink.options, sink.urls.finish()?)),
        Err(_) if too_long.get() => {
            Err(IntakeError::LongString { index: sink.urls.count(), limit: MAX_URL_BYTES })
        }
        Err(error) if error.is_io() => Err(spool.failed(error.into()).into()),
        Err(error) => Err(IntakeError::Json(error)),
    }
}

/// Receives the parts of the body.
struct Sink {
    urls: UrlWriter,
    seen_urls: bool,
    options: BatchOptions,
    labels: usize,
    /// Why reading stopped, where the JSON is not at fault.
    refusal: Option<IntakeError>,
}

impl Sink {
    fn refuse<E: Error>(&mut self, refusal: impl Into<IntakeError>) -> E {
        self.refusal = Some(refusal.into());
        E::custom("refused")
    }

    fn option<E: Error>(&mut self, name: &str, value: Option<String>) -> Result<(), E> {
        let Some(value) = value else { return Ok(()) };
        let set = self.options.set(OptionSource::Json, name, &value, self.labels);
        set.map(drop).map_err(|e| self.refuse(e))
    }
}

struct Body<'a>(&'a mut Sink);

impl<'de> Visitor<'de> for Body<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object with image_urls")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "image_urls" if self.0.seen_urls => return Err(A::Error::duplicate_field("image_urls")),
                "image_urls" => {
                    self.0.seen_urls = true;
                    map.next_value_seed(Urls(self.0))?;
                }
                "request_id" | "camera" => {
                    let value = map.next_value_seed(Scalar { name: &name, number: false })?;
                    self.0.option(&name, value)?;
                }
                "top_k" => {
                    let value = map.next_value_seed(Scalar { name: &name, number: true })?;
                    self.0.option(&name, value)?;
                }
                other => return Err(A::Error::unknown_field(other, FIELDS)),
            }
        }
        Ok(())
    }
}

/// An option's value as text; `null` counts as absent.
struct Scalar<'a> {
    name: &'a str,
    number: bool,
}

impl<'de> DeserializeSeed<'de> for Scalar<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar<'_> {
    type Value = Option<String>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.number { "whole number" } else { "string" };
        write!(to, "a {kind} as {}", self.name)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        if self.number {
            return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self));
        }
        Ok(Some(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        if self.number {
            return Ok(Some(number.to_string()));
        }
        Err(E::invalid_type(serde::de::Unexpected::Unsigned(number), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

struct Urls<'a>(&'a mut Sink);

impl<'de> DeserializeSeed<'de> for Urls<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Urls<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an array of strings as image_urls")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(OneUrl(self.0))?.is_some() {}
        Ok(())
    }
}

struct OneUrl<'a>(&'a mut Sink);

impl<'de> DeserializeSeed<'de> for OneUrl<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for OneUrl<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "a string as image_urls[{}]", self.0.urls.count())
    }

    fn visit_str<E: Error>(self, url: &str) -> Result<(), E> {
        self.0.urls.push(url).map_err(|refusal| self.0.refuse(refusal))
    }
}

/// Passes JSON on until a string in it takes more than `limit` bytes as written, escapes included.
///
/// The JSON reader collects a string in memory before its length can be checked: without this a body of one 256 MB string
/// would become 256 MB of memory.
struct BoundedStrings<R> {
    inner: R,
    limit: usize,
    /// Bytes of the string that is open, if one is.
    open: Option<usize>,
    escaped: bool,
    exceeded: Rc<Cell<bool>>,
}

impl<R: Read> BoundedStrings<R> {
    /// The reader, and the mark that says whether the bound was why it failed.
    fn new(inner: R, limit: usize) -> (Self, Rc<Cell<bool>>) {
        let exceeded = Rc::new(Cell::new(false));
        (Self { inner, limit, open: None, escaped: false, exceeded: Rc::clone(&exceeded) }, exceeded)
    }

    /// How many of the bytes may pass: fewer than all where a string exceeds the bound.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        for (index, &byte) in bytes.iter().enumerate() {
            match (&mut self.open, byte) {
                (None, b'"') => self.open = Some(0),
                (None, _) => {}
                (Some(_), b'"') if !self.escaped => self.open = None,
                (Some(length), _) => {
                    *length += 1;
                    if *length > self.limit {
                        return index;
                    }
                    self.escaped = byte == b'\\' && !self.escaped;
                }
            }
        }
        bytes.len()
    }
}

impl<R: Read> Read for BoundedStrings<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The bytes before the string that is too long are passed first, so that the reader knows its position.
        if !self.exceeded.get() {
            let count = self.inner.read(buffer)?;
            let passed = self.pass(&buffer[..count]);
            self.exceeded.set(passed < count);
            if passed > 0 || count == 0 {
                return Ok(passed);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a string is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(json: &str, limit: usize) -> bool {
        let (mut reader, exceeded) = BoundedStrings::new(json.as_bytes(), limit);
        let mut text = String::new();
        let read = reader.read_to_string(&mut text);
        assert_eq!(read.is_err(), exceeded.get());
        assert!(read.is_err() || text == json);
        !exceeded.get()
    }

    #[test]
    fn strings_are_measured_and_nothing_else_is() {
        assert!(passes(r#"{"abcd": [1000000000000, "abcd", "a\"b"], "": {}}"#, 4));
        assert!(!passes(r#"["abcde"]"#, 4));
        assert!(!passes(r#"["a\"bc"]"#, 4), "an escaped quote does not end a string");
        assert!(passes(r#"["ab\\", 123456789]"#, 4), "an escaped backslash escapes nothing");
        assert!(!passes("\"never closed", 4));
    }
}

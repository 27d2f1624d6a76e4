//! The JSON form of a batch, read without ever holding the list of URLs: each goes to a file as it is met.

use std::fmt;
use std::io::{BufReader, Read};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::options::{BatchOptions, Place};
use super::strings::BoundedStrings;
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

/// Where the parts of the body go.
struct Sink {
    urls: UrlWriter,
    seen_urls: bool,
    options: BatchOptions,
    labels: usize,
    /// Why reading was broken off, where it was not the JSON.
    refusal: Option<IntakeError>,
}

impl Sink {
    fn refuse<E: Error>(&mut self, refusal: impl Into<IntakeError>) -> E {
        self.refusal = Some(refusal.into());
        E::custom("refused")
    }

    fn option<E: Error>(&mut self, name: &str, value: Option<String>) -> Result<(), E> {
        let Some(value) = value else { return Ok(()) };
        let set = self.options.set(Place::Json, name, &value, self.labels);
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

/// An option's value as text; `null` is as good as absent.
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

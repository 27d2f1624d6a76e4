//! The fields of a message, read without building unused values: 16 MiB of JSON can be 8 million values.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use super::is_url;

/// A value, without its content where it is an array or object.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool,
    Number(Number),
    Text(String),
    List,
    Object,
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List => "an array",
            Self::Object => "an object",
        }
    }
}

/// The JSON value of a message.
pub(super) enum Found {
    Object(Box<Fields>),
    Other(Value),
}

/// The known fields; of a repeated one the last counts.
#[derive(Default)]
pub(super) struct Fields {
    pub(super) image_url: Option<Value>,
    pub(super) image_urls: Option<Urls>,
    pub(super) request_id: Option<Value>,
    pub(super) camera: Option<Value>,
    pub(super) top_k: Option<Value>,
    pub(super) submitted_at: Option<Value>,
    pub(super) timestamp: Option<Value>,
    pub(super) num_images: Option<Value>,
    pub(super) digest: Option<Value>,
    pub(super) chunk: Option<Value>,
    pub(super) chunks: Option<Value>,
    pub(super) total: Option<Value>,
    pub(super) first: Option<Value>,
}

/// The value of `image_urls`.
pub(super) enum Urls {
    /// An array of `count` values. All are in `urls`, unless they are too many or one is `bad`: the first such, with its
    /// index.
    List {
        urls: Vec<String>,
        count: u64,
        bad: Option<(u64, Value)>,
    },
    Other(Value),
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    ImageUrl,
    ImageUrls,
    RequestId,
    Camera,
    TopK,
    SubmittedAt,
    Timestamp,
    NumImages,
    Digest,
    Chunk,
    Chunks,
    Total,
    First,
    #[serde(other)]
    Unknown,
}

/// Reads a message, and at most `most` of its `image_urls`.
pub(super) fn read(payload: &[u8], most: u64) -> Result<Found, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(payload);
    let found = Of(Message { most }).deserialize(&mut json)?;
    json.end()?;
    Ok(found)
}

/// What to build from a value of any type. The content of arrays and objects is skipped by default.
trait Shape<'de>: Sized {
    type Out;

    fn value(self, value: Value) -> Self::Out;

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Out, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.value(Value::List))
    }

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Out, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.value(Value::Object))
    }
}

/// The value itself.
struct Plain;

impl Shape<'_> for Plain {
    type Out = Value;

    fn value(self, value: Value) -> Value {
        value
    }
}

struct Message {
    most: u64,
}

impl<'de> Shape<'de> for Message {
    type Out = Found;

    fn value(self, value: Value) -> Found {
        Found::Other(value)
    }

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<Found, A::Error> {
        let mut fields = Box::<Fields>::default();
        while let Some(name) = object.next_key()? {
            let field = match name {
                Name::ImageUrl => &mut fields.image_url,
                Name::RequestId => &mut fields.request_id,
                Name::Camera => &mut fields.camera,
                Name::TopK => &mut fields.top_k,
                Name::SubmittedAt => &mut fields.submitted_at,
                Name::Timestamp => &mut fields.timestamp,
                Name::NumImages => &mut fields.num_images,
                Name::Digest => &mut fields.digest,
                Name::Chunk => &mut fields.chunk,
                Name::Chunks => &mut fields.chunks,
                Name::Total => &mut fields.total,
                Name::First => &mut fields.first,
                Name::ImageUrls => {
                    fields.image_urls = None;
                    fields.image_urls = Some(object.next_value_seed(Of(List { most: self.most }))?);
                    continue;
                }
                Name::Unknown => {
                    object.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *field = Some(object.next_value_seed(Of(Plain))?);
        }
        Ok(Found::Object(fields))
    }
}

struct List {
    most: u64,
}

impl<'de> Shape<'de> for List {
    type Out = Urls;

    fn value(self, value: Value) -> Urls {
        Urls::Other(value)
    }

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<Urls, A::Error> {
        let (mut urls, mut count, mut bad) = (Vec::new(), 0, None);
        // The rest is only counted, for the error message.
        while count < self.most && bad.is_none() {
            match list.next_element_seed(Of(Plain))? {
                Some(Value::Text(url)) if is_url(&url) => urls.push(url),
                Some(other) => bad = Some((count, other)),
                None => return Ok(Urls::List { urls, count, bad }),
            }
            count += 1;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Urls::List { urls, count, bad })
    }
}

struct Of<S>(S);

impl<'de, S: Shape<'de>> DeserializeSeed<'de> for Of<S> {
    type Value = S::Out;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<S::Out, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, S: Shape<'de>> Visitor<'de> for Of<S> {
    type Value = S::Out;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<S::Out, E> {
        Ok(self.0.value(Value::Null))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<S::Out, E> {
        Ok(self.0.value(Value::Bool))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<S::Out, E> {
        Ok(self.0.value(Value::Number(number.into())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<S::Out, E> {
        Ok(self.0.value(Value::Number(number.into())))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<S::Out, E> {
        Ok(self.0.value(Number::from_f64(number).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<S::Out, E> {
        Ok(self.0.value(Value::Text(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<S::Out, E> {
        Ok(self.0.value(Value::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<S::Out, A::Error> {
        self.0.list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<S::Out, A::Error> {
        self.0.object(object)
    }
}

//! Values that clients send, each with its one parser: HTTP requests, batches and the command line share them.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Deref;

use ulid::Ulid;

/// Maximum length of a camera's name and of a request's id, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// The name of a camera: 1 to [`MAX_NAME_BYTES`] bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraName(String);

/// A text that is not the name of a camera.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown:?} is not a name of 1 to {MAX_NAME_BYTES} bytes without control characters")]
pub struct InvalidCamera {
    shown: String,
}

impl CameraName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`InvalidCamera`], which shows the first [`MAX_NAME_BYTES`] characters.
    pub fn parse(text: &str) -> Result<Self, InvalidCamera> {
        if text.is_empty() || text.len() > MAX_NAME_BYTES || text.chars().any(char::is_control) {
            return Err(InvalidCamera { shown: text.chars().take(MAX_NAME_BYTES).collect() });
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// How many labels an answer has: from 1 to the number of the model's labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK(NonZeroUsize);

/// A number of labels that is out of range, or not a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown} is not a whole number from 1 to {max}")]
pub struct InvalidTopK {
    shown: String,
    max: usize,
}

impl TopK {
    /// Parses a number from 1 to `max`.
    ///
    /// # Errors
    /// [`InvalidTopK`].
    pub fn parse(text: &str, max: usize) -> Result<Self, InvalidTopK> {
        let parsed = text.parse::<usize>().ok().and_then(|number| Self::within(number, max));
        parsed.ok_or_else(|| InvalidTopK { shown: format!("{text:?}"), max })
    }

    /// Checks that a number is from 1 to `max`.
    ///
    /// # Errors
    /// [`InvalidTopK`].
    pub fn new(number: u64, max: usize) -> Result<Self, InvalidTopK> {
        let checked = usize::try_from(number).ok().and_then(|number| Self::within(number, max));
        checked.ok_or_else(|| InvalidTopK { shown: number.to_string(), max })
    }

    fn within(number: usize, max: usize) -> Option<Self> {
        NonZeroUsize::new(number).filter(|number| number.get() <= max).map(Self)
    }

    /// The number.
    pub fn get(self) -> usize {
        self.0.get()
    }
}

/// The id of a request: 1 to [`MAX_NAME_BYTES`] visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// Parses an id; `None` for a text that cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_valid =
            (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_valid.then(|| Self(text.to_owned()))
    }

    /// A new ULID.
    pub fn generate() -> Self {
        Self(Ulid::generate().to_string())
    }

    /// The id of one of several images of the request, counted from 1.
    #[must_use]
    pub fn of_image(&self, number: usize) -> Self {
        Self(format!("{}-{number}", self.0))
    }
}

impl Deref for CameraName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_bounded() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for good in ["dock 3", "Quai n\u{b0}3", longest.as_str()] {
            assert_eq!(&*CameraName::parse(good).unwrap(), good);
        }
        let long = "x".repeat(1000);
        for bad in ["", "a\nb", "a\u{85}b", long.as_str()] {
            assert!(CameraName::parse(bad).unwrap_err().to_string().len() < 250, "{bad:?}");
        }
        assert!(RequestId::parse(&longest).is_some());
        assert!(["", "a b", "caf\u{e9}", long.as_str()].iter().all(|bad| RequestId::parse(bad).is_none()));
        assert!(RequestId::parse(&RequestId::generate()).is_some());
        assert_eq!(&*RequestId::parse("a").unwrap().of_image(2), "a-2");
    }

    #[test]
    fn the_number_of_labels_is_from_one_to_those_of_the_model() {
        assert_eq!(TopK::parse("17", 17).unwrap().get(), 17);
        assert_eq!(TopK::new(1, 17).unwrap().get(), 1);
        let refused = TopK::parse("18", 17).unwrap_err().to_string();
        assert_eq!(refused, "\"18\" is not a whole number from 1 to 17");
        assert!(
            ["", "0", "-1", "1.5", "99999999999999999999"].iter().all(|bad| TopK::parse(bad, 17).is_err())
        );
        assert!(TopK::new(0, 17).is_err() && TopK::new(u64::MAX, 17).is_err());
    }
}

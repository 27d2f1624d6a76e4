//! What a batch says beside its images. Each may stand in the query or in the body.

use std::fmt;

use crate::batch::object_keys::check_id;
use crate::values::{CameraName, TopK};

/// What a batch says beside its images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// The client's own id for the batch.
    pub request_id: Option<String>,
    /// The camera that took the pictures.
    pub camera: Option<String>,
    /// How many labels each result has.
    pub top_k: Option<usize>,
}

/// Where an option stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the query.
    Query,
    /// In the JSON body.
    Json,
    /// In a field of the form.
    Form,
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Query => "query",
            Self::Json => "JSON body",
            Self::Form => "form",
        })
    }
}

/// An option that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (in the {place})")]
pub struct OptionError {
    /// Where it stands.
    pub place: Place,
    reason: String,
}

impl OptionError {
    /// An option in `place` that can't be used, for this reason.
    pub fn new(place: Place, reason: impl Into<String>) -> Self {
        Self { place, reason: reason.into() }
    }
}

impl BatchOptions {
    /// Takes the option called `name`. `labels` is how many the model has. Says whether there is such an option.
    ///
    /// # Errors
    /// When the value is out of bounds, or the option stands there twice.
    pub fn set(&mut self, place: Place, name: &str, value: &str, labels: usize) -> Result<bool, OptionError> {
        let wrong = |reason: String| OptionError::new(place, reason);
        let twice = match name {
            "request_id" => {
                check_id(value).map_err(|e| wrong(e.to_string()))?;
                self.request_id.replace(value.to_owned()).is_some()
            }
            "camera" => {
                let camera = CameraName::parse(value).map_err(|e| wrong(format!("camera = {e}")))?;
                self.camera.replace(camera.into_string()).is_some()
            }
            "top_k" => {
                let top_k = TopK::parse(value, labels).map_err(|e| wrong(format!("top_k = {e}")))?;
                self.top_k.replace(top_k.get()).is_some()
            }
            _ => return Ok(false),
        };
        if twice { Err(wrong(format!("{name} stands there twice"))) } else { Ok(true) }
    }

    /// What the query says, with what the body adds to it.
    ///
    /// # Errors
    /// When both say the same option differently.
    pub fn with(self, body: Self, place: Place) -> Result<Self, OptionError> {
        Ok(Self {
            request_id: either("request_id", self.request_id, body.request_id, place)?,
            camera: either("camera", self.camera, body.camera, place)?,
            top_k: either("top_k", self.top_k, body.top_k, place)?,
        })
    }
}

fn either<T: PartialEq + fmt::Debug>(
    name: &str,
    query: Option<T>,
    body: Option<T>,
    place: Place,
) -> Result<Option<T>, OptionError> {
    match (query, body) {
        (Some(query), Some(body)) if query != body => {
            Err(OptionError::new(place, format!("{name} is {body:?} here and {query:?} in the query")))
        }
        (query, body) => Ok(query.or(body)),
    }
}

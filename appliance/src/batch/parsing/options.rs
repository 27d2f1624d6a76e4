//! The options of a batch. Each may be in the query or in the body.

use std::fmt;

use crate::batch::object_keys::check_id;
use crate::values::{CameraName, TopK};

/// The options of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchOptions {
    /// The client's id for the batch.
    pub request_id: Option<String>,
    /// The camera that took the pictures.
    pub camera: Option<String>,
    /// Predictions per image.
    pub top_k: Option<usize>,
}

/// Where an option was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionSource {
    /// In the query.
    Query,
    /// In the JSON body.
    Json,
    /// In a field of the form.
    Form,
}

impl fmt::Display for OptionSource {
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
#[error("{reason} (in the {found_in})")]
pub struct OptionError {
    /// Where it was found.
    pub found_in: OptionSource,
    reason: String,
}

impl OptionError {
    /// An option that can't be used, for this reason.
    pub fn new(found_in: OptionSource, reason: impl Into<String>) -> Self {
        Self { found_in, reason: reason.into() }
    }
}

impl BatchOptions {
    /// Sets the option called `name`. `labels` is the number of labels of the model. Returns whether there is such an option.
    ///
    /// # Errors
    /// When the value is out of bounds, or the option is repeated.
    pub fn set(
        &mut self,
        source: OptionSource,
        name: &str,
        value: &str,
        labels: usize,
    ) -> Result<bool, OptionError> {
        let wrong = |reason: String| OptionError::new(source, reason);
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
        if twice { Err(wrong(format!("{name} is given twice"))) } else { Ok(true) }
    }

    /// The options of the query together with those of the body.
    ///
    /// # Errors
    /// When both have an option with different values.
    pub fn with(self, body: Self, source: OptionSource) -> Result<Self, OptionError> {
        Ok(Self {
            request_id: either("request_id", self.request_id, body.request_id, source)?,
            camera: either("camera", self.camera, body.camera, source)?,
            top_k: either("top_k", self.top_k, body.top_k, source)?,
        })
    }
}

fn either<T: PartialEq + fmt::Debug>(
    name: &str,
    query: Option<T>,
    body: Option<T>,
    source: OptionSource,
) -> Result<Option<T>, OptionError> {
    match (query, body) {
        (Some(query), Some(body)) if query != body => {
            Err(OptionError::new(source, format!("{name} is {body:?} here and {query:?} in the query")))
        }
        (query, body) => Ok(query.or(body)),
    }
}

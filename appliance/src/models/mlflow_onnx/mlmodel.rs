//! `MLmodel`: which file of a logged model is the ONNX graph.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Deserialize)]
struct MlModel {
    flavors: Flavors,
}

#[derive(Deserialize)]
struct Flavors {
    onnx: Option<Onnx>,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Onnx {
    data: String,
}

/// The path of the ONNX file, relative to the folder of the `MLmodel`.
///
/// # Errors
/// A sentence that says what the file is not.
pub(in crate::models) fn onnx_file(text: &str) -> Result<String, String> {
    let model: MlModel = serde_saphyr::from_str(text)
        .map_err(|error| format!("MLmodel can't be read: {}", one_line(&error.to_string())))?;
    let Some(onnx) = model.flavors.onnx else {
        let others: Vec<_> = model.flavors.others.into_keys().collect();
        return Err(format!(
            "MLmodel has no onnx flavour, only {}: log the model with mlflow.onnx.log_model, or log a Weir bundle",
            others.join(", ")
        ));
    };
    Ok(onnx.data)
}

/// The parser draws a picture of the place below its message.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

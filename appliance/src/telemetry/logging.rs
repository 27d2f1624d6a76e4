//! Structured logs on standard error: text for a terminal, one JSON object a line elsewhere.

use std::io::{IsTerminal, stderr};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;

use super::log_limit::LogLimit;

/// Logs, on standard error.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A level or a filter such as `info,weir::http=debug`.
    pub level: String,
    /// `auto`, `text` or `json`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::default() }
    }
}

/// Why logging can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("log.level = {level:?} is no level or filter: {source}")]
    Filter {
        /// The value.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// There is a subscriber already.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process.
///
/// # Errors
/// [`LoggingError`] for a filter that can't be parsed, or a second call.
pub fn init(config: &LogConfig) -> Result<(), LoggingError> {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .map_err(|source| LoggingError::Filter { level: config.level.clone(), source })?;
    let terminal = stderr().is_terminal();
    let limit = LogLimit::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_span_events(FmtSpan::NONE);
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.with_ansi(terminal).with_target(false).boxed()
    };
    let lines = lines.with_filter(limit.clone());
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LoggingError::Twice)?;
    limit.report();
    Ok(())
}

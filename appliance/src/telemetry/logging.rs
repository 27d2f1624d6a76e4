//! Structured logs on standard error: text for a terminal, one JSON object a line elsewhere.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{LogConfig, LogFormat};

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
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_span_events(FmtSpan::NONE);
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let done = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_ansi(terminal).with_target(false).try_init()
    };
    done.map_err(|_| LoggingError::Twice)
}

//! What an operator may have a rollout do.

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ends the trial of the version that is on one: it serves.
    Promote,
    /// Back to the version before. The one that serves, or is on trial, is rejected.
    Rollback,
    /// Asks the registry now; a version that was rejected is tried again.
    Reload,
    /// Serves this version of the registered model, whatever the alias says; none ends that.
    Pin(Option<String>),
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

//! Which paths there are on which listener, and the methods that each takes.

use super::models;
use crate::http::state::Role;

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surface {
    /// Everything, for clients of `weir serve`.
    Public,
    /// How a worker is.
    Worker,
    /// For the operator: health with all details, metrics, models.
    Admin,
}

impl Surface {
    /// That of `http.listen`.
    pub(super) fn of(role: Role) -> Self {
        match role {
            Role::Serve => Self::Public,
            Role::Worker => Self::Worker,
        }
    }
}

const READ: &str = "GET, HEAD, OPTIONS";
const POST: &str = "POST, OPTIONS";
const DELETE: &str = "DELETE, OPTIONS";
const POST_DELETE: &str = "POST, DELETE, OPTIONS";

/// The methods of a path, as the header Allow lists them; None where there is no such path.
pub(super) fn allowed(surface: Surface, path: &str) -> Option<&'static str> {
    let has_id =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|id| !id.is_empty() && !id.contains('/'));
    match path {
        "/health" | "/health/live" | "/health/ready" | "/metrics" | "/models" => Some(READ),
        _ if has_id("/models/") => Some(READ),
        _ if models::is_order(path) => Some(POST),
        _ if surface != Surface::Public => None,
        "/" | "/openapi.json" | "/docs" => Some(READ),
        "/predict" => Some(POST),
        // The batch that a client has called "predict" can be cancelled too.
        "/batch/predict" => Some(POST_DELETE),
        _ if has_id("/batch/") => Some(DELETE),
        _ if has_id("/batch/status/") || has_id("/batch/results/") => Some(READ),
        _ => None,
    }
}

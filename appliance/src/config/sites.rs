//! Checks of the host names and origins that may be configured.

use warp::http::uri::Authority;

/// Whether a configured name is a host name or a pattern of one.
pub(super) fn is_host_pattern(pattern: &str) -> bool {
    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
    pattern == "*"
        || !name.is_empty()
            && name.len() <= 253
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Whether a configured origin is one as browsers send it.
pub(super) fn is_origin(origin: &str) -> bool {
    let Some((scheme, page)) = origin.split_once("://") else { return origin == "*" };
    let named = page.parse::<Authority>().is_ok_and(|authority| authority.as_str() == page);
    named && !scheme.is_empty() && !page.contains(['/', '@', '*'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_names_and_origins_are_checked() {
        assert!(["weir", "*.example.com", "*", "a-b_c.d"].iter().all(|name| is_host_pattern(name)));
        assert!(
            !["", "http://weir", "weir:80", "a*.b", "*.", "we ir"].iter().any(|name| is_host_pattern(name))
        );
        assert!(["https://a.example", "http://10.0.0.1:3000", "*"].iter().all(|origin| is_origin(origin)));
        assert!(
            !["a.example", "https://", "https://a/b", "https://*.a"].iter().any(|origin| is_origin(origin))
        );
    }
}

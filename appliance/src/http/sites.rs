//! Checks of Host and Origin: the protection against requests that a foreign web page makes through a visitor's browser.
//!
//! A page on the internet can have a visitor's browser send requests to addresses that only the visitor can reach. With a name
//! of its own that resolves to this box (DNS rebinding) it can read the replies; `Host` shows that name. With a name of this box
//! it cannot, but the request is made; `Origin` shows the page's own name.

use warp::http::header::{HOST, ORIGIN};
use warp::http::uri::Authority;
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use super::reply::ApiError;
use crate::config::Config;

const FETCH_SITE: &str = "sec-fetch-site";

/// Allowed host names and origins.
#[derive(Debug)]
pub(super) struct Sites {
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// Who made a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Not a browser, or a page of this box.
    Here,
    /// A page of this origin, which may read the reply.
    Page(HeaderValue),
}

impl Sites {
    pub(super) fn new(config: &Config) -> Self {
        let node = config.node.name.to_ascii_lowercase();
        let machine = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let mut hosts = vec!["localhost".to_owned(), "*.localhost".to_owned()];
        for name in [node, machine] {
            hosts.push(format!("{name}.local"));
            hosts.push(name);
        }
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>();
        hosts.extend(lower(&config.http.allowed_hosts));
        Self { hosts, origins: lower(&config.http.allowed_origins) }
    }

    /// Whether pages of other sites are allowed.
    pub(super) fn has_origins(&self) -> bool {
        !self.origins.is_empty()
    }

    /// Refuses a request with a host name or an origin that is not allowed.
    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_request("bad_request", "the request has two Host headers"));
            }
            (host, _) => host.map(|value| value.to_str().unwrap_or("\u{fffd}")),
        };
        // Only clients that are not browsers send no Host.
        for host in host.into_iter().chain(uri.authority().map(Authority::as_str)) {
            if !self.is_ours(host) {
                let shown: String = host.chars().take(100).collect();
                let message = format!(
                    "this box is not called {shown:?}; reach it by its address or node name, or add the name to \
                     http.allowed_hosts"
                );
                return Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, "host_refused", message));
            }
        }
        let Some(origin) = headers.get(ORIGIN) else {
            let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
            let cross = matches!(site, Some(b"cross-site" | b"same-site"));
            return match cross && !matches!(*method, Method::GET | Method::HEAD) {
                true => Err(refused("(none)")),
                false => Ok(Caller::Here),
            };
        };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let page = text.split_once("://").map(|(_, page)| page);
        // The scheme may differ: TLS may be terminated by a proxy.
        if page.is_some() && page == host.map(str::to_ascii_lowercase).as_deref() {
            return Ok(Caller::Here);
        }
        if self.origins.iter().any(|allowed| *allowed == "*" || *allowed == text) {
            return Ok(Caller::Page(origin.clone()));
        }
        Err(refused(&text))
    }

    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        if host.contains('@') {
            return false;
        }
        let name = authority.host();
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        if address.parse::<std::net::IpAddr>().is_ok() {
            return true;
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.hosts.iter().any(|pattern| matches(pattern, &name))
    }
}

fn refused(origin: &str) -> ApiError {
    let shown: String = origin.chars().take(100).collect();
    let message = format!(
        "pages of {shown:?} may not use this box; to let them, add the origin to http.allowed_origins"
    );
    ApiError::new(StatusCode::FORBIDDEN, "origin_refused", message)
}

/// `*` is every name, `*.example.com` every name below example.com.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Sites {
        let mut config = Config::default();
        config.node.name = "Dock-3".into();
        config.http.allowed_hosts = vec!["weir.harbour.svc".into(), "*.example.com".into()];
        config.http.allowed_origins = vec!["https://board.example.org".into()];
        Sites::new(&config)
    }

    fn check(method: &Method, headers: &[(&'static str, &str)]) -> Result<Caller, &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        sites().check(method, &Uri::from_static("/predict"), &map).map_err(|error| error.code)
    }

    #[test]
    fn a_name_that_is_not_ours_is_refused_and_addresses_are_not() {
        for host in [
            "127.0.0.1:8080",
            "10.1.2.3",
            "[::1]:8080",
            "[2001:db8::1]",
            "localhost",
            "LOCALHOST:80",
            "dock-3",
            "dock-3.local:8080",
            "Dock-3.",
            "weir.harbour.svc",
            "a.b.example.com",
        ] {
            assert_eq!(check(&Method::GET, &[("host", host)]), Ok(Caller::Here), "{host}");
        }
        for host in [
            "evil.example",
            "example.com",
            "evilexample.com",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "dock-3.evil.example",
            "",
        ] {
            assert_eq!(check(&Method::GET, &[("host", host)]), Err("host_refused"), "{host}");
        }
        assert_eq!(check(&Method::GET, &[]), Ok(Caller::Here), "HTTP/1.0");
        assert_eq!(check(&Method::GET, &[("host", "localhost"), ("host", "a")]), Err("bad_request"));
        let absolute = Uri::from_static("http://evil.example/predict");
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))]);
        assert_eq!(sites().check(&Method::GET, &absolute, &headers).unwrap_err().code, "host_refused");
    }

    #[test]
    fn a_foreign_page_is_refused_unless_it_is_allowed() {
        let host = ("host", "10.1.2.3:8080");
        for method in [Method::GET, Method::POST] {
            for origin in ["http://evil.example", "null", "http://10.1.2.3", "http://10.1.2.3:8081", "", "x"]
            {
                let found = check(&method, &[host, ("origin", origin)]);
                assert_eq!(found, Err("origin_refused"), "{method} {origin}");
            }
            for origin in ["http://10.1.2.3:8080", "https://10.1.2.3:8080"] {
                assert_eq!(check(&method, &[host, ("origin", origin)]), Ok(Caller::Here));
            }
            let allowed = check(&method, &[host, ("origin", "https://board.example.org")]);
            assert_eq!(allowed, Ok(Caller::Page(HeaderValue::from_static("https://board.example.org"))));
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(check(&Method::POST, &[host, (FETCH_SITE, site)]), Err("origin_refused"));
            assert_eq!(check(&Method::GET, &[host, (FETCH_SITE, site)]), Ok(Caller::Here), "a link to /docs");
        }
        for site in ["same-origin", "none"] {
            assert_eq!(check(&Method::POST, &[host, (FETCH_SITE, site)]), Ok(Caller::Here));
        }
    }
}

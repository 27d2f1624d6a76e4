//! The rules for URLs and addresses. Sources: the IANA special-purpose address registries for IPv4 and IPv6, and the cloud
//! providers' documentation of their metadata addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use reqwest::Url;

use super::FetchError;

/// These serve credentials, so no configuration allows them: link-local metadata of most clouds, container credentials, the own
/// addresses of Alibaba, Azure, Oracle, Scaleway and Tencent, and the IPv6 forms.
const METADATA: [IpAddr; 13] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 23)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
];

/// Checks the URL itself: scheme, userinfo, and the address if the host is one. The resolver checks names. The URL parser turns
/// decimal, octal and hexadecimal IPv4 forms into addresses, so that they are checked here.
///
/// # Errors
/// [`FetchError::BadUrl`] or [`FetchError::Refused`].
pub fn check_url(url: &Url, allow: &[IpNet]) -> Result<(), FetchError> {
    let bad = |reason: String| FetchError::BadUrl { reason };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad(format!("scheme {:?} is not served; http and https are", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("a user name or password in the URL is not served".into()));
    }
    let host = url.host_str().ok_or_else(|| bad("there is no host".into()))?;
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) if !may_reach(address, allow) => Err(FetchError::Refused { host: host.into(), address }),
        _ => Ok(()),
    }
}

/// Whether connections to the address are allowed: it is public or in an allowed network, and not a metadata address. An IPv6
/// address that contains an IPv4 one must pass as both.
pub fn may_reach(address: IpAddr, allow: &[IpNet]) -> bool {
    let inner = embedded_v4(address);
    let forms = [Some(address), inner.map(IpAddr::V4)];
    let forms = || forms.iter().flatten();
    if forms().any(|a| METADATA.contains(a)) {
        return false;
    }
    if forms().any(|a| allow.iter().any(|net| net.contains(a))) {
        return true;
    }
    match (address, inner) {
        (IpAddr::V4(v4), _) | (_, Some(v4)) => public_v4(v4),
        (IpAddr::V6(v6), None) => public_v6(v6),
    }
}

/// The IPv4 address inside a mapped (::ffff:a.b.c.d), compatible (::a.b.c.d), NAT64 (64:ff9b::/96) or 6to4 (2002::/16)
/// address.
fn embedded_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let s = v6.segments();
    let low = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
    match s {
        [0, 0, 0, 0, 0, 0xffff, ..] => Some(low),
        [0, 0, 0, 0, 0, 0, high, last] if (high, last) != (0, 0) && (high, last) != (0, 1) => Some(low),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(low),
        [0x2002, a, b, ..] => Some(Ipv4Addr::from((u32::from(a) << 16) | u32::from(b))),
        _ => None,
    }
}

fn public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, ..)
    )
}

/// Only global unicast (2000::/3), less its special-purpose blocks.
fn public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let global = s[0] & 0xe000 == 0x2000;
    let special = matches!((s[0], s[1]), (0x2001, 0..=0x01ff | 0x0db8) | (0x3fff, 0..=0x0fff));
    global && !special
}

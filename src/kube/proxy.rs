//! The proxy for the API server, chosen as Go's `golang.org/x/net/http/httpproxy` does.

use std::net::IpAddr;

use anyhow::{anyhow, bail};
use ipnet::IpNet;

use super::Options;
use crate::text::redacted;

/// The proxy that the environment names for a server, as a URL with or without a scheme.
///
/// # Errors
/// A server that is not a URL.
pub(super) fn of(server: &str, options: &Options) -> anyhow::Result<Option<String>> {
    let uri = http::Uri::try_from(server)
        .map_err(|_| anyhow!("`{}` is not the URL of an API server", redacted(server)))?;
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let proxy = if secure {
        &options.https_proxy
    } else {
        &options.http_proxy
    };
    let proxy = proxy.clone();
    Ok(proxy.filter(|_| !bypasses(host, port, &options.no_proxy)))
}

/// Reads a proxy's URL. Without a scheme it is `http`.
///
/// # Errors
/// When it is not the URL of a supported proxy.
pub(super) fn parse(url: &str) -> anyhow::Result<ureq::Proxy> {
    let scheme = url
        .split_once("://")
        .map(|(scheme, _)| scheme.to_ascii_lowercase());
    if !matches!(
        scheme.as_deref(),
        None | Some("http" | "https" | "socks5" | "socks5h")
    ) {
        bail!(
            "proxy `{}` is not supported: its scheme must be http, https or socks5",
            redacted(url)
        );
    }
    // As in Go, the proxy resolves the server's name: ureq calls that `socks5h`.
    let url_for_ureq = match scheme.as_deref() {
        Some("socks5") => format!("socks5h{}", &url["socks5".len()..]),
        _ => url.to_owned(),
    };
    ureq::Proxy::new(&url_for_ureq)
        .map_err(|_| anyhow!("`{}` is not the URL of a proxy", redacted(url)))
}

/// Whether `NO_PROXY` names a host: itself, a domain above it, or a network that it is in. Loopback always
/// bypasses the proxy.
fn bypasses(host: &str, port: u16, no_proxy: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let ip = host.parse::<IpAddr>().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let entries = no_proxy
        .split(',')
        .map(|entry| entry.trim().to_ascii_lowercase());
    entries.into_iter().any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(network) = entry.parse::<IpNet>() {
            return ip.is_some_and(|ip| network.contains(&ip));
        }
        let (name, of_port) = split_port(&entry);
        if of_port.is_some_and(|of_port| of_port != port.to_string()) || name.is_empty() {
            return false;
        }
        if let Ok(named) = name.parse::<IpAddr>() {
            return ip == Some(named);
        }
        // `.example.com` and `*.example.com` match subdomains; `example.com` matches itself, too.
        let name = name
            .strip_prefix('*')
            .filter(|name| name.starts_with('.'))
            .unwrap_or(name);
        match name.strip_prefix('.') {
            Some(_) => host.ends_with(name),
            None => {
                host == name
                    || host
                        .strip_suffix(name)
                        .is_some_and(|rest| rest.ends_with('.'))
            }
        }
    })
}

/// An entry of `NO_PROXY` without its port, and that port if there is one. An IPv6 address with a port is in
/// brackets.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (entry, None),
    };
    let name = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    (name, port.filter(|port| !port.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_need_no_proxy() {
        for (host, list, wanted) in [
            ("api.example.com", "example.com", true),
            ("api.example.com", ".example.com", true),
            ("example.com", ".example.com", false),
            ("example.com", "*.example.com", false),
            ("example.com", "example.com:", true),
            ("api.example.com", ".example.com:6443", true),
            ("api.example.com", ".example.com:443", false),
            ("notexample.com", "*example.com", false),
            ("::1", "", true),
            ("10.1.2.3", "10.1.2.3/32", true),
            ("fd00::1", "10.0.0.0/8,fd00::1", true),
            ("10.1.2.3", " 10.1.2.3 ,", true),
            ("api.example.com", "*.example.com", true),
            ("badexample.com", "example.com", false),
            ("api.example.com", "other, *", true),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("11.1.2.3", "10.0.0.0/8", false),
            ("10.1.2.3", "0.0.0.0/0", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("fd00::1", "fd00::/8", true),
            ("127.0.0.1", "", true),
            ("api", "", false),
            ("API.Example.com", "example.COM", true),
            ("api.example.com", "api.example.com:6443", true),
            ("api.example.com", "api.example.com:443", false),
            ("10.1.2.3", "10.1.2.3:6443", true),
            ("10.1.2.3", "10.1.2.3:80", false),
            ("fd00::1", "[fd00::1]:6443", true),
        ] {
            assert_eq!(bypasses(host, 6443, list), wanted, "{host} in {list}");
        }
    }

    #[test]
    fn proxies() {
        for (url, wanted) in [
            ("proxy:3128", "http proxy 3128"),
            ("HTTP://proxy", "http proxy 80"),
            ("https://proxy", "https proxy 443"),
            ("socks5://user:p%40ss@proxy", "socks5h proxy 1080 user p@ss"),
        ] {
            let proxy = parse(url).expect(url);
            let scheme = proxy
                .uri()
                .scheme_str()
                .unwrap_or_default()
                .to_ascii_lowercase();
            let parts = [Some(scheme.as_str()), Some(proxy.host())]
                .into_iter()
                .flatten();
            let parts = parts.map(str::to_owned).chain([proxy.port().to_string()]);
            let user = [proxy.username(), proxy.password()].into_iter().flatten();
            let parts = parts.chain(user.map(str::to_owned)).collect::<Vec<_>>();
            assert_eq!(parts.join(" "), wanted);
        }
        for (url, wanted) in [
            ("ftp://user:s3cret@proxy", "must be http, https or socks5"),
            ("socks4://proxy", "must be http, https or socks5"),
            ("http://", "is not the URL of a proxy"),
        ] {
            let error = parse(url).expect_err(url).to_string();
            assert!(
                error.contains(wanted) && !error.contains("s3cret"),
                "{error}"
            );
        }
    }
}

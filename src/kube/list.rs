//! Lists pods: complete, or an error.

use std::io::{self, Read};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use log::{debug, trace};
use percent_encoding::utf8_percent_encode;
use rustls::pki_types::ServerName;
use ureq::Agent;

use super::credentials::Auth;
use super::kubeconfig::{Access, Options, access};
use super::proxy;
use super::wire::{self, Each, Page, json, protobuf};
use crate::model::Pod;
use crate::net::deadline::Deadline;
use crate::net::http;
use crate::net::pem;
use crate::text::{self, escaped, redacted};

/// Pods per page.
const PAGE: usize = 500;

/// The largest page that is read, in bytes after decompression: 500 pods of half a megabyte.
const LARGEST: u64 = 256 << 20;

/// How often a list is started over because its continue token has expired.
const RESTARTS: usize = 3;

/// Leaves out pods that have ended: their addresses may be others' by now.
const NOT_COMPLETED: &str = "status.phase!=Failed,status.phase!=Succeeded";

/// A Kubernetes API server.
pub struct Api {
    access: Access,
    agent: Agent,
    /// The value of the header `Authorization`.
    authorization: Option<String>,
    deadline: Deadline,
    /// What is read of a page goes here: new memory for each would cost more than decoding it.
    buffer: Vec<u8>,
}

/// Which pods are listed.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'s> {
    /// Of this namespace; `None` is all of the cluster.
    pub namespace: Option<&'s str>,
    /// Label selector.
    pub labels: Option<&'s str>,
    /// Field selector; the one that leaves completed pods out is always added.
    pub fields: Option<&'s str>,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server understood who asks, and refused: its words.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Api {
    /// Finds the API server, and who we are to it. Nothing is asked of it yet.
    ///
    /// # Errors
    /// A kubeconfig or service account that cannot be used, and why.
    pub fn open(options: &Options, deadline: Deadline) -> anyhow::Result<Self> {
        let mut access = access(options)?;
        let authorization = access.auth.header(&mut access.tls, deadline)?;
        let agent = agent(&access)?;
        Ok(Self {
            access,
            agent,
            authorization,
            deadline,
            buffer: Vec::new(),
        })
    }

    /// The cluster's fingerprint: the first 8 hex digits of the SHA-256 of its CA certificates (DER, in
    /// order) and the path of its URL; where no CA is checked, of its host, port and path.
    #[must_use]
    pub fn cluster(&self) -> String {
        let server = &self.access.server;
        let mut ders = self.access.tls.ca.as_deref().map_or(Vec::new(), |pem| {
            pem::certificates(pem)
                .unwrap_or_default()
                .iter()
                .map(|der| der.to_vec())
                .collect()
        });
        ders.sort_unstable();
        let mut text = ders.concat();
        if text.is_empty() || self.access.tls.insecure {
            text = host_and_port(server).into_bytes();
        }
        // Gateways serve many clusters under one host and one CA.
        let rest = server.split_once("://").map_or(&**server, |(_, rest)| rest);
        if let Some((_, path)) = rest.split_once('/') {
            text.push(b'/');
            text.extend_from_slice(path.trim_end_matches('/').as_bytes());
        }
        text::fingerprint(&text)
    }

    /// The server's URL.
    pub(super) fn server(&self) -> &str {
        &self.access.server
    }

    /// The namespace that is meant when none is named: the context's or the service account's.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.access.namespace
    }

    /// Lists pods, completely. `map` turns each into what the caller keeps: a page is dropped before
    /// the next is asked for. A list that has to start over throws away what was mapped.
    ///
    /// # Errors
    /// [`Error`]: whatever kept the list from being complete.
    pub fn list<T>(
        &mut self,
        selection: &Selection,
        map: &mut dyn FnMut(Pod<'_>) -> T,
    ) -> Result<Vec<T>, Error> {
        let first = self.url(selection);
        let mut restarts = 0;
        'list: loop {
            let mut kept = Vec::new();
            let mut version = None::<String>;
            let mut url = first.clone();
            loop {
                let wrong =
                    |why: String| anyhow!("GET {url} answered a list that is not whole: {why}");
                let answer = self.page(&url, &mut |pod| {
                    if selection
                        .namespace
                        .is_some_and(|wanted| wanted != pod.namespace)
                    {
                        bail!(
                            "it holds pod {}/{} of another namespace",
                            escaped(&pod.namespace),
                            escaped(&pod.name)
                        );
                    }
                    kept.push(map(pod));
                    Ok(())
                })?;
                let Page {
                    resource_version,
                    next,
                } = match answer {
                    Answer::Page(page) => page,
                    Answer::Expired(why) if restarts < RESTARTS => {
                        debug!("the list starts over: {why}");
                        restarts += 1;
                        continue 'list;
                    }
                    Answer::Expired(why) => {
                        return Err(anyhow!("{why}: and so {RESTARTS} times before").into());
                    }
                };
                let version = version.get_or_insert_with(|| resource_version.clone());
                if *version != resource_version {
                    return Err(wrong(format!(
                        "its pages are of resourceVersion {version} and {}",
                        escaped(&resource_version)
                    ))
                    .into());
                }
                if next.is_empty() {
                    return Ok(kept);
                }
                let next = utf8_percent_encode(&next, http::COMPONENT);
                url = format!("{first}&continue={next}");
            }
        }
    }

    fn url(&self, selection: &Selection) -> String {
        let server = &self.access.server;
        let path = match selection.namespace {
            Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods"),
            None => "/api/v1/pods".to_owned(),
        };
        let fields = match selection.fields {
            Some(fields) => format!("{fields},{NOT_COMPLETED}"),
            None => NOT_COMPLETED.to_owned(),
        };
        let fields = utf8_percent_encode(&fields, http::COMPONENT);
        let mut url = format!("{server}{path}?limit={PAGE}&fieldSelector={fields}");
        if let Some(labels) = selection.labels {
            url += "&labelSelector=";
            url.extend(utf8_percent_encode(labels, http::COMPONENT));
        }
        url
    }

    /// Asks for one page, again where that may help: never once pods of it were handed over.
    fn page(&mut self, url: &str, each: &mut Each) -> Result<Answer, Error> {
        /// The first pause before a request is sent again; it doubles up to the longest.
        const PAUSE: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(2);
        let mut pause = PAUSE;
        let mut renewed = false;
        let mut asked_again = false;
        loop {
            let time = self.deadline.attempt().map_err(anyhow::Error::from)?;
            let shown = redacted(url);
            let (why, wait) = match self.get(url, time, each) {
                Ok(Reply::Page(page)) => {
                    let page = page.with_context(|| format!("GET {shown} answered 200"))?;
                    return Ok(Answer::Page(page));
                }
                Ok(Reply::No {
                    status,
                    retry_after,
                    location,
                    body,
                }) => {
                    let message = escaped(&wire::status_message(&body)).into_owned();
                    let message = format!("GET {shown} answered {status}: {message}");
                    match status {
                        410 => return Ok(Answer::Expired(message)),
                        401 if !renewed && self.renew()? => {
                            renewed = true;
                            continue;
                        }
                        401 => {
                            return Err(anyhow!(
                                "{message}: is the token or certificate still good?"
                            )
                            .into());
                        }
                        // A server that has just started refuses a good token for a moment.
                        403 if !asked_again => {
                            asked_again = true;
                            (message, Some(Duration::from_secs(1)))
                        }
                        403 => return Err(Error::Refused(message)),
                        429 | 500 | 502 | 503 | 504 => {
                            // `Retry-After: 0` still waits a little.
                            (message, retry_after.map(|after| after.max(pause)))
                        }
                        300..400 => {
                            let to = location.map_or(String::new(), |to| {
                                format!(" to {}", escaped(&redacted(&to)))
                            });
                            return Err(anyhow!(
                                "GET {shown} answered {status}, a redirect{to}: it is not followed"
                            )
                            .into());
                        }
                        400 if message.contains("HTTPS server") => {
                            return Err(anyhow!("{message} (use `https://` for the server)").into());
                        }
                        _ => return Err(anyhow!(message).into()),
                    }
                }
                Err(Trouble { passing, text }) => {
                    let message = format!("GET {shown} failed: {text}");
                    if !passing {
                        return Err(anyhow!(message).into());
                    }
                    (message, None)
                }
            };
            debug!("{why}: asking again");
            let refused = asked_again && why.contains(" answered 403: ");
            let paused = match wait {
                Some(wait) => self.deadline.pause(wait),
                None => self.deadline.back_off(pause),
            };
            if let Err(up) = paused {
                return Err(if refused {
                    Error::Refused(why)
                } else {
                    anyhow!("{why}; {up}").into()
                });
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    fn get(&mut self, url: &str, time: Duration, each: &mut Each) -> Result<Reply, Trouble> {
        debug!("GET {}", redacted(url));
        let trouble = |error: &ureq::Error| Trouble {
            passing: http::is_refused(error) || http::was_closed(error),
            text: http::problem(error, time),
        };
        let mut handed_over = false;
        let mut each = |pod: Pod<'_>| {
            handed_over = true;
            each(pod)
        };
        let mut request = self
            .agent
            .get(url)
            .config()
            .timeout_per_call(Some(time))
            .build()
            .header(
                "Accept",
                "application/vnd.kubernetes.protobuf, application/json",
            );
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        for (name, value) in &self.access.impersonate {
            request = request.header(name, value);
        }
        let mut response = request.call().map_err(|error| trouble(&error))?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let status = response.status().as_u16();
        let kind = header("content-type").unwrap_or_default();
        let retry_after = header("retry-after").and_then(|text| text.trim().parse().ok());
        let location = header("location");
        let mut body = response.body_mut().with_config().limit(LARGEST).reader();
        if status == 200 {
            return match decode(&kind, &mut body, &mut self.buffer, &mut each) {
                Ok(page) => Ok(Reply::Page(Ok(page))),
                Err(error) => match error.downcast::<io::Error>() {
                    Ok(error) => {
                        let trouble = trouble(&error.into());
                        // What was handed over cannot be taken back.
                        let passing = trouble.passing && !handed_over;
                        Err(Trouble { passing, ..trouble })
                    }
                    Err(error) => Ok(Reply::Page(Err(error))),
                },
            };
        }
        let mut text = Vec::new();
        body.read_to_end(&mut text)
            .map_err(|error| trouble(&error.into()))?;
        trace!("{status}, {kind}, {} bytes", text.len());
        Ok(Reply::No {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            location,
            body: text,
        })
    }

    /// Finds out anew who we are. `false` where that cannot change.
    fn renew(&mut self) -> anyhow::Result<bool> {
        if !matches!(self.access.auth, Auth::TokenFile { .. } | Auth::Exec(_)) {
            return Ok(false);
        }
        debug!("the server does not know us: reading the credentials again");
        let exec = matches!(self.access.auth, Auth::Exec(_));
        self.authorization = self
            .access
            .auth
            .header(&mut self.access.tls, self.deadline)?;
        if exec {
            self.agent = agent(&self.access)?;
        }
        Ok(true)
    }
}

/// What a request for a page led to.
enum Answer {
    Page(Page),
    /// The continue token is too old. The one that comes with this would lead to an inconsistent rest.
    Expired(String),
}

enum Reply {
    /// Status 200, and what its body is.
    Page(anyhow::Result<Page>),
    /// Any other status.
    No {
        status: u16,
        retry_after: Option<Duration>,
        location: Option<String>,
        body: Vec<u8>,
    },
}

struct Trouble {
    /// Nobody listens there, or the connection was closed: it may be starting again.
    passing: bool,
    text: String,
}

fn decode(
    kind: &str,
    body: &mut dyn Read,
    buffer: &mut Vec<u8>,
    each: &mut Each,
) -> anyhow::Result<Page> {
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/vnd.kubernetes.protobuf" => protobuf::page(body, buffer, each),
        "application/json" => json::page(body, buffer, each),
        other => bail!(
            "and `{}`, not pods: is this the API server?",
            escaped(other)
        ),
    }
}

fn agent(access: &Access) -> anyhow::Result<Agent> {
    let secure = access.server.starts_with("https://");
    if !secure && !access.server.starts_with("http://") {
        bail!("`{}` is no URL of an API server", redacted(&access.server));
    }
    let tls = if secure {
        Some(access.tls.client(&["http/1.1"])?)
    } else {
        None
    };
    let server_name = match &access.server_name {
        Some(name) => Some(
            ServerName::try_from(name.clone())
                .map_err(|_| anyhow!("`{}` can be no name in a certificate", escaped(name)))?,
        ),
        None => None,
    };
    let proxy = access.proxy.as_deref().map(proxy::parse).transpose()?;
    http::agent(http::Options {
        tls,
        server_name,
        proxy,
        proxy_ca: access.tls.ca.clone(),
        gzip: access.gzip,
    })
}

fn host_and_port(server: &str) -> String {
    let (scheme, rest) = server.split_once("://").unwrap_or(("https", server));
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority
        .rsplit_once(']')
        .map_or(authority, |(_, rest)| rest);
    let port = if scheme == "http" { 80 } else { 443 };
    if host.contains(':') {
        authority.to_owned()
    } else {
        format!("{authority}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_without_a_ca_are_told_apart_by_host_and_port() {
        assert_eq!(
            host_and_port("https://api.example.com"),
            "api.example.com:443"
        );
        assert_eq!(host_and_port("http://[::1]/x"), "[::1]:80");
        assert_eq!(host_and_port("https://10.0.0.1:6443"), "10.0.0.1:6443");
    }
}

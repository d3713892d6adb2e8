//! Lists pods from an API server: a complete list, or an error.

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
use crate::model::{Pod, Reads};
use crate::net::deadline::Deadline;
use crate::net::http;
use crate::net::pem;
use crate::text::{self, escaped, redacted};

/// Pods per page.
const PAGE: usize = 500;

/// The largest page that is read, in bytes after decompression: 500 pods of half a megabyte.
const LARGEST: u64 = 256 << 20;

/// The limit of restarts of a list whose continue token has expired.
const RESTARTS: usize = 3;

/// Excludes completed pods: their addresses may have been reused.
const NOT_COMPLETED: &str = "status.phase!=Failed,status.phase!=Succeeded";

/// A client of one Kubernetes API server.
pub struct Api {
    access: Access,
    agent: Agent,
    /// The value of the header `Authorization`.
    authorization: Option<String>,
    /// The labels and annotations that are decoded.
    reads: Reads,
    deadline: Deadline,
    /// Reused for each page: allocating it anew would cost more than decoding.
    buffer: Vec<u8>,
}

/// Which pods to list.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'s> {
    /// Their namespace; `None` means all namespaces.
    pub namespace: Option<&'s str>,
    /// Label selector.
    pub labels: Option<&'s str>,
    /// Field selector; one that excludes completed pods is always added.
    pub fields: Option<&'s str>,
}

/// Why listing failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered 403, with this message.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Api {
    /// Finds the API server and the credentials for it; an exec plugin is run. Sends no request yet. Pods will
    /// have the labels and annotations of `reads`.
    ///
    /// # Errors
    /// A kubeconfig or service account that cannot be used, and why.
    pub fn open(options: &Options, reads: Reads, deadline: Deadline) -> anyhow::Result<Self> {
        let mut access = access(options)?;
        let authorization = access.auth.header(&mut access.tls, deadline)?;
        let agent = agent(&access)?;
        Ok(Self {
            access,
            agent,
            authorization,
            reads,
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

    /// The default namespace: the context's or the service account's.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.access.namespace
    }

    /// Lists all pods of a selection. `map` turns each into what the caller keeps: only one page is in
    /// memory. A list that starts over (410) discards its results and maps its pods again.
    ///
    /// # Errors
    /// [`Error`] whenever the list is not complete.
    pub fn list<T>(
        &mut self,
        selection: &Selection,
        map: &mut dyn FnMut(Pod<'_>) -> T,
    ) -> Result<Vec<T>, Error> {
        let first = self.url(selection);
        let mut restarts = 0;
        'list: loop {
            let mut pods = Vec::new();
            let mut version = None::<String>;
            let mut url = first.clone();
            loop {
                let incomplete =
                    |why: String| anyhow!("GET {url} answered an incomplete list: {why}");
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
                    pods.push(map(pod));
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
                    return Err(incomplete(format!(
                        "its pages are of resourceVersion {version} and {}",
                        escaped(&resource_version)
                    ))
                    .into());
                }
                if next.is_empty() {
                    return Ok(pods);
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

    /// Requests one page, and retries where that may help; never once pods of the page were passed to `each`.
    fn page(&mut self, url: &str, each: &mut Each) -> Result<Answer, Error> {
        /// The first pause before a retry; it doubles up to `LONGEST`.
        const PAUSE: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(2);
        let mut pause = PAUSE;
        let mut renewed = false;
        let mut retried_403 = false;
        loop {
            let time = self.deadline.attempt().map_err(anyhow::Error::from)?;
            let shown = redacted(url);
            let (why, wait) = match self.get(url, time, each) {
                Ok(Reply::Page(page)) => {
                    let page = page.with_context(|| format!("GET {shown} answered 200"))?;
                    return Ok(Answer::Page(page));
                }
                Ok(Reply::Status {
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
                                "{message}: is the token or certificate still valid?"
                            )
                            .into());
                        }
                        // A server that has just started may refuse a valid token at first.
                        403 if !retried_403 => {
                            retried_403 = true;
                            (message, Some(Duration::from_secs(1)))
                        }
                        403 => return Err(Error::Refused(message)),
                        429 | 500 | 502 | 503 | 504 => {
                            // `Retry-After: 0` still waits for the back-off.
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
                Err(Failure { retryable, text }) => {
                    let message = format!("GET {shown} failed: {text}");
                    if !retryable {
                        return Err(anyhow!(message).into());
                    }
                    (message, None)
                }
            };
            debug!("{why}: retrying");
            let refused = retried_403 && why.contains(" answered 403: ");
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

    fn get(&mut self, url: &str, time: Duration, each: &mut Each) -> Result<Reply, Failure> {
        debug!("GET {}", redacted(url));
        let failure = |error: &ureq::Error| Failure {
            retryable: http::is_refused(error) || http::was_closed(error),
            text: http::problem(error, time),
        };
        let mut passed_on = false;
        let mut each = |pod: Pod<'_>| {
            passed_on = true;
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
        let mut response = request.call().map_err(|error| failure(&error))?;
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
            return match decode(&kind, &mut body, &mut self.buffer, &self.reads, &mut each) {
                Ok(page) => Ok(Reply::Page(Ok(page))),
                Err(error) => match error.downcast::<io::Error>() {
                    Ok(error) => {
                        let failure = failure(&error.into());
                        // Pods that were passed on cannot be taken back.
                        let retryable = failure.retryable && !passed_on;
                        Err(Failure {
                            retryable,
                            ..failure
                        })
                    }
                    Err(error) => Ok(Reply::Page(Err(error))),
                },
            };
        }
        let mut text = Vec::new();
        body.read_to_end(&mut text)
            .map_err(|error| failure(&error.into()))?;
        trace!("{status}, {kind}, {} bytes", text.len());
        Ok(Reply::Status {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            location,
            body: text,
        })
    }

    /// Renews the credentials. `false` if they are static.
    fn renew(&mut self) -> anyhow::Result<bool> {
        if !self.access.auth.is_renewable() {
            return Ok(false);
        }
        debug!("reading the credentials again");
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

/// The outcome of requesting a page.
enum Answer {
    Page(Page),
    /// Status 410: the continue token has expired. The fresh one in the answer would continue an inconsistent
    /// list, so it is ignored.
    Expired(String),
}

enum Reply {
    /// Status 200, and its decoded body.
    Page(anyhow::Result<Page>),
    /// Any other status.
    Status {
        status: u16,
        retry_after: Option<Duration>,
        location: Option<String>,
        body: Vec<u8>,
    },
}

/// A request without a complete answer.
struct Failure {
    /// Whether a retry may help: the connection was refused or closed, as by a server that restarts.
    retryable: bool,
    text: String,
}

fn decode(
    kind: &str,
    body: &mut dyn Read,
    buffer: &mut Vec<u8>,
    reads: &Reads,
    each: &mut Each,
) -> anyhow::Result<Page> {
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/vnd.kubernetes.protobuf" => protobuf::page(body, buffer, reads, each),
        "application/json" => json::page(body, buffer, reads, each),
        other => bail!(
            "with `{}`, not pods: is this the API server?",
            escaped(other)
        ),
    }
}

fn agent(access: &Access) -> anyhow::Result<Agent> {
    let secure = access.server.starts_with("https://");
    if !secure && !access.server.starts_with("http://") {
        bail!(
            "`{}` is not the URL of an API server",
            redacted(&access.server)
        );
    }
    let tls = if secure {
        Some(access.tls.client(&["http/1.1"])?)
    } else {
        None
    };
    let server_name = match &access.server_name {
        Some(name) => Some(
            ServerName::try_from(name.clone())
                .map_err(|_| anyhow!("`{}` is not a valid server name", escaped(name)))?,
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
mod tests;

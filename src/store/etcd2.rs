//! etcd's API version 2 over HTTP: one key at a time, with the three actions that vulcand watches.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::anyhow;
use log::debug;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use ureq::Agent;

use super::endpoints::{Attempts, Endpoint, Endpoints, Options, User};
use super::{Applied, ApplyError, Store, check_range};
use crate::model::{Denied, Expect, KeyValue, Limits, Op, Snapshot, Transaction};
use crate::net::deadline::Deadline;
use crate::net::http;
use crate::text::{escaped, redacted, shortened};

/// The largest answer that is read, in bytes.
const LARGEST: u64 = 256 << 20;

/// Error codes of etcd's API version 2.
const NOT_FOUND: u32 = 100;
const NOT_A_FILE: u32 = 102;
const NO_DIRECTORY: u32 = 104;
const EXISTS: u32 = 105;
const UNAUTHORIZED: u32 = 110;

/// etcd, over its API version 2. Keys whose name begins with `_` are hidden from every listing.
pub struct Etcd2 {
    endpoints: Endpoints,
    agent: Agent,
    authorization: Option<String>,
    user: Option<String>,
    deadline: Deadline,
    dial_timeout: Duration,
    /// Whether etcd has answered before, so that it is known to speak HTTP.
    answered: Cell<bool>,
    /// The id of the cluster that was listed (`X-Etcd-Cluster-Id`).
    cluster: RefCell<Option<String>>,
}

/// An answer of etcd.
enum Answer {
    /// A node, and the store's index.
    Node(Node, u64),
    /// One of etcd's errors.
    Error(EtcdError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EtcdError {
    #[serde(default)]
    error_code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    /// The store's index.
    #[serde(default)]
    index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    dir: bool,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    modified_index: u64,
}

#[derive(Deserialize)]
struct NodeAnswer {
    node: Node,
}

/// Why a request failed.
enum Failure {
    /// The request was never sent.
    Unsent(String),
    /// The answer was lost: a change may have been applied.
    Lost(String),
    /// The cluster has no leader, or a new one: a change may have been applied.
    Leaderless(String),
    /// The request was refused, or this is not the server that was listed: not retried.
    Refused(String),
}

impl Etcd2 {
    /// Checks the options. Connects when first asked for something.
    ///
    /// # Errors
    /// An endpoint that is not valid, or a certificate that cannot be read.
    pub fn open(options: Options, deadline: Deadline) -> anyhow::Result<Self> {
        let (endpoints, tls) = Endpoints::prepare(&options, &["http/1.1"])?;
        let agent = http::agent(http::Options {
            tls,
            server_name: None,
            proxy: None,
            proxy_ca: None,
            gzip: false,
        })?;
        let user = options.user.as_ref().map(|user| user.name.clone());
        let authorization = options
            .user
            .map(|User { name, password }| http::basic(&name, &password));
        Ok(Self {
            endpoints,
            agent,
            authorization,
            user,
            deadline,
            dial_timeout: options.dial_timeout,
            answered: Cell::new(false),
            cluster: RefCell::default(),
        })
    }

    fn endpoint(&self) -> &Endpoint {
        self.endpoints.current()
    }

    /// Sends one request to the current endpoint. `path` is a key, `query` follows it in the URL, `form` is
    /// the body of a PUT.
    fn ask(
        &self,
        method: &str,
        path: &str,
        query: &str,
        form: Option<&str>,
    ) -> Result<Answer, Failure> {
        let time = self
            .deadline
            .attempt()
            .map_err(|up| Failure::Unsent(up.to_string()))?;
        // A trailing slash is kept: patterns of roles match it.
        let path = utf8_percent_encode(path.trim_start_matches('/'), http::PATH);
        let url = format!("{}/v2/keys/{path}{query}", self.endpoint());
        debug!("{method} {url}");
        let failure = |error: &ureq::Error| {
            let text = format!("{method} {url} failed: {}", http::problem(error, time));
            if http::never_sent(error) {
                Failure::Unsent(text)
            } else {
                Failure::Lost(text)
            }
        };
        let request = ureq::http::Request::builder().method(method).uri(&url);
        let request = match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        };
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let response = match form {
            Some(form) => request
                .body(form.to_owned())
                .map(|request| self.send(request, time)),
            None => request.body(()).map(|request| self.send(request, time)),
        };
        let response = response.map_err(|error| Failure::Unsent(error.to_string()))?;
        let mut response = response.map_err(|error| match failure(&error) {
            Failure::Lost(why)
                if http::was_closed(&error) && !self.answered.get() && !self.endpoint().tls =>
            {
                Failure::Lost(format!("{why}: if it speaks TLS, use `https://`"))
            }
            failure => failure,
        })?;
        self.answered.set(true);
        let header = |name: &str| {
            let value = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let cluster = header("x-etcd-cluster-id");
        if !cluster.is_empty() {
            let listed = self
                .cluster
                .borrow_mut()
                .get_or_insert_with(|| cluster.clone())
                .clone();
            if cluster != listed {
                return Err(Failure::Refused(format!(
                    "{} belongs to another etcd cluster ({cluster}) than the one that was listed ({listed}): nothing is \
                     written there; check `--etcd`",
                    self.endpoint()
                )));
            }
        }
        let status = response.status().as_u16();
        let (index, location) = (header("x-etcd-index"), header("location"));
        let json = header("content-type").starts_with("application/json");
        let body = response
            .body_mut()
            .with_config()
            .limit(LARGEST)
            .read_to_vec();
        let body = body.map_err(|error| failure(&error))?;
        self.interpret(
            &format!("{method} {url}"),
            status,
            json,
            (&index, &location),
            &body,
        )
    }

    /// Interprets an answer. `request` is for messages.
    fn interpret(
        &self,
        request: &str,
        status: u16,
        json: bool,
        (index, location): (&str, &str),
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let text = || {
            let body = String::from_utf8_lossy(body);
            escaped(&shortened(body.trim(), 300)).into_owned()
        };
        match status {
            200 | 201 => match serde_json::from_slice(body) {
                Ok(NodeAnswer { node }) => Ok(Answer::Node(node, index.parse().unwrap_or(0))),
                Err(error) => Err(Failure::Lost(format!(
                    "{request} answered {status} but not as etcd does: {error}"
                ))),
            },
            300..400 => Err(Failure::Refused(format!(
                "{request} answered {status}, a redirect to {}: it is not followed",
                escaped(&redacted(location))
            ))),
            401 | 403 => {
                let error = serde_json::from_slice::<EtcdError>(body).ok();
                match error {
                    // For example a directory in place of a key.
                    Some(error) if error.error_code > 0 && error.error_code != UNAUTHORIZED => {
                        return Ok(Answer::Error(error));
                    }
                    _ => {}
                }
                let message = error.map_or_else(text, |error| error.message);
                let message = format!("{request} answered {status}: {}", escaped(&message));
                Ok(Answer::Error(EtcdError {
                    error_code: UNAUTHORIZED,
                    message,
                    cause: String::new(),
                    index: 0,
                }))
            }
            404 if !json && !text().starts_with("404 page not found") => {
                Err(Failure::Refused(format!(
                    "a web server answers at {}, not etcd: {request} answered 404",
                    self.endpoint()
                )))
            }
            404 if !json => Err(Failure::Refused(format!(
                "etcd's API version 2 is switched off at {}: start etcd with `--enable-v2`, or give \
                 `--etcd-api 3`",
                self.endpoint()
            ))),
            400 if text().contains("HTTPS server") => Err(Failure::Refused(format!(
                "{} speaks TLS: use `https://`",
                self.endpoint()
            ))),
            _ => match serde_json::from_slice::<EtcdError>(body) {
                // Raft errors: another member may succeed, or this one after a pause.
                Ok(error) if json && error.error_code >= 300 => Err(Failure::Leaderless(format!(
                    "{request} answered {status}: {}: {}",
                    escaped(&error.message),
                    escaped(&error.cause)
                ))),
                Ok(error) if json && error.error_code > 0 => Ok(Answer::Error(error)),
                _ if status >= 500 => Err(Failure::Lost(format!(
                    "{request} answered {status}: {}",
                    text()
                ))),
                _ => Err(Failure::Refused(format!(
                    "{request} answered {status}: {}",
                    text()
                ))),
            },
        }
    }

    fn send(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
        time: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let request = self
            .agent
            .configure_request(request)
            .timeout_per_call(Some(time))
            .timeout_connect(Some(time.min(self.dial_timeout)))
            .build();
        self.agent.run(request)
    }

    /// Sends a GET to one endpoint after the other, until one answers.
    fn read(&mut self, path: &str, query: &str) -> anyhow::Result<Answer> {
        let mut attempts = Attempts::start(self.deadline)?;
        loop {
            let why = match self.ask("GET", path, query, None) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(why)) => return Err(anyhow!(why)),
                Err(Failure::Leaderless(why)) => {
                    attempts.leaderless();
                    why
                }
                Err(Failure::Unsent(why) | Failure::Lost(why)) => why,
            };
            attempts.next(&mut self.endpoints, Some(why))?;
        }
    }

    /// Whether a key is as expected, by a quorum read.
    fn holds(&mut self, key: &str, expect: Expect) -> Result<bool, ApplyError> {
        let answer = self.read(key, "?quorum=true");
        Ok(match (answer.map_err(ApplyError::Refused)?, expect) {
            (Answer::Node(node, _), Expect::Absent) if node.dir => {
                return Err(ApplyError::Directory(key.to_owned()));
            }
            (Answer::Node(..), Expect::Present) => true,
            (Answer::Node(node, _), Expect::Revision(revision)) => {
                !node.dir && node.modified_index == revision
            }
            (Answer::Node(..), Expect::Absent) => false,
            (
                Answer::Error(EtcdError {
                    error_code: NOT_FOUND,
                    ..
                }),
                expect,
            ) => expect == Expect::Absent,
            (Answer::Error(error), _) => return Err(self.refused(key, error)),
        })
    }

    /// The error for a change of `key` that etcd refused.
    fn refused(&self, key: &str, error: EtcdError) -> ApplyError {
        if error.error_code != NO_DIRECTORY {
            return ApplyError::Refused(self.described(error));
        }
        // etcd spells it with a leading slash, whatever the prefix.
        let bare = error.cause.trim_start_matches('/');
        let slash = if key.starts_with('/') { "/" } else { "" };
        ApplyError::NotADirectory(format!("{slash}{bare}"))
    }

    fn described(&self, error: EtcdError) -> anyhow::Error {
        let EtcdError {
            error_code,
            message,
            cause,
            index: _,
        } = error;
        if error_code == UNAUTHORIZED {
            return match &self.user {
                Some(user) => anyhow!("{message}: user `{user}`, its password, or its roles"),
                None => anyhow!("{message}: etcd wants a user: give `--user`"),
            };
        }
        let cause = if cause.is_empty() {
            cause
        } else {
            format!(" ({cause})")
        };
        anyhow!(
            "{} answered: {}{}",
            self.endpoint(),
            escaped(&message),
            escaped(&cause)
        )
    }

    fn write(&mut self, op: &Op, create: bool) -> Result<Applied, ApplyError> {
        let mut attempts = Attempts::start(self.deadline).map_err(ApplyError::Refused)?;
        loop {
            let answer = match op {
                // vulcand ignores all other actions: compareAndSwap, update, recursive deletes.
                Op::Put { key, value } => {
                    let query = if create { "?prevExist=false" } else { "" };
                    let form = format!("value={}", utf8_percent_encode(value, http::COMPONENT));
                    self.ask("PUT", key, query, Some(&form))
                }
                Op::Delete { key } => self.ask("DELETE", key, "", None),
            };
            return match answer {
                Ok(Answer::Node(..)) => Ok(Applied::Whole),
                Ok(Answer::Error(EtcdError {
                    error_code: NOT_FOUND | EXISTS,
                    ..
                })) => Ok(Applied::Outdated),
                Ok(Answer::Error(EtcdError {
                    error_code: NOT_A_FILE,
                    ..
                })) => {
                    let (Op::Put { key, .. } | Op::Delete { key }) = op;
                    Err(ApplyError::Directory(key.clone()))
                }
                Ok(Answer::Error(error)) => {
                    let (Op::Put { key, .. } | Op::Delete { key }) = op;
                    Err(self.refused(key, error))
                }
                Err(Failure::Refused(why)) => Err(ApplyError::Refused(anyhow!(why))),
                Err(Failure::Lost(why) | Failure::Leaderless(why)) => {
                    self.endpoints.advance();
                    Err(ApplyError::Unknown(anyhow!(why)))
                }
                Err(Failure::Unsent(why)) => {
                    attempts
                        .next(&mut self.endpoints, Some(why))
                        .map_err(ApplyError::Refused)?;
                    // Read first: the next endpoint may be of another cluster.
                    let (Op::Put { key, .. } | Op::Delete { key }) = op;
                    self.read(key, "?quorum=true")
                        .map_err(ApplyError::Refused)?;
                    continue;
                }
            };
        }
    }
}

/// Collects the keys below a node. An empty directory becomes a key that ends with a slash.
fn collect_keys(node: Node, spelled: &dyn Fn(&str) -> String, entries: &mut Vec<KeyValue>) {
    let Node {
        key,
        value,
        dir,
        nodes,
        modified_index: revision,
    } = node;
    if dir && nodes.is_empty() {
        let key = format!("{}/", spelled(&key)).into_bytes();
        entries.push(KeyValue {
            key,
            value: Vec::new(),
            revision,
        });
    } else if dir {
        for node in nodes {
            collect_keys(node, spelled, entries);
        }
    } else {
        entries.push(KeyValue {
            key: spelled(&key).into_bytes(),
            value: value.into_bytes(),
            revision,
        });
    }
}

impl Store for Etcd2 {
    fn list(&mut self, prefixes: &[&str]) -> anyhow::Result<Snapshot> {
        *self.cluster.borrow_mut() = None;
        let mut revision = None;
        let mut ranges = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            let spelled = |key: &str| {
                let bare = key.trim_start_matches('/');
                if prefix.starts_with('/') {
                    format!("/{bare}")
                } else {
                    bare.to_owned()
                }
            };
            let directory = format!("{}/", prefix.trim_end_matches('/'));
            ranges.push(
                match self.read(&directory, "?recursive=true&quorum=true")? {
                    Answer::Node(root, index) => {
                        revision.get_or_insert(index);
                        let mut entries = Vec::new();
                        for node in root.nodes {
                            collect_keys(node, &spelled, &mut entries);
                        }
                        check_range(prefix, &entries)?;
                        entries.sort_by(|a, b| a.key.cmp(&b.key));
                        Ok(entries)
                    }
                    Answer::Error(EtcdError {
                        error_code: NOT_FOUND,
                        index,
                        ..
                    }) => {
                        revision.get_or_insert(index);
                        Ok(Vec::new())
                    }
                    Answer::Error(error) if error.error_code == UNAUTHORIZED => {
                        Err(Denied(self.described(error).to_string()))
                    }
                    // Such ranges are only read for warnings: not a failure.
                    Answer::Error(error) if error.error_code == NO_DIRECTORY => {
                        Err(Denied(self.refused(prefix, error).to_string()))
                    }
                    Answer::Error(error) => return Err(self.described(error)),
                },
            );
        }
        Ok(Snapshot { revision, ranges })
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<Applied, ApplyError> {
        let [op] = transaction.ops.as_slice() else {
            return Err(ApplyError::Refused(anyhow!(
                "etcd v2 takes one change at a time"
            )));
        };
        let (Op::Put { key, .. } | Op::Delete { key }) = op;
        let mut create = false;
        for guard in &transaction.guards {
            create |= guard.key == *key && guard.expect == Expect::Absent;
            if !self.holds(&guard.key, guard.expect)? {
                return Ok(Applied::Outdated);
            }
        }
        self.write(op, create)
    }

    fn limits(&self) -> Limits {
        Limits {
            operations: 1,
            // Its own key, the definition, and an entry that a delete depends on.
            guards: 3,
            ranges: false,
            bytes: 1 << 20,
        }
    }

    fn name(&self) -> String {
        self.endpoint().to_string()
    }
}

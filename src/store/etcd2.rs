//! etcd's API version 2, over HTTP: one key at a time, with the three verbs that vulcand watches.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::anyhow;
use log::debug;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use ureq::Agent;

use super::endpoints::{Attempts, Endpoint, Endpoints, Options, User};
use super::{Applied, ApplyError, Store, check_range};
use crate::model::{Denied, Entry, Expect, Limits, Op, Snapshot, Transaction};
use crate::net::deadline::Deadline;
use crate::net::http;
use crate::text::{escaped, redacted, shortened};

/// The largest answer that is read, in bytes.
const LARGEST: u64 = 256 << 20;

/// etcd's codes in the body of an answer that says no.
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
    /// Whether one has answered: then it is known to speak HTTP.
    answered: Cell<bool>,
    /// The cluster that was listed, as it names itself in each answer.
    cluster: RefCell<Option<String>>,
}

/// What was answered.
enum Answer {
    /// A node, and the store's index.
    Node(Node, u64),
    /// An error of etcd's own.
    No(No),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct No {
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
struct Whole {
    node: Node,
}

/// Why there is no answer.
enum Failure {
    /// The request was never sent.
    Unsent(String),
    /// Whether it was done is not known.
    Lost(String),
    /// The cluster has no leader, or just got another. Whether it was done is not known.
    Leaderless(String),
    /// It was refused.
    Refused(String),
}

impl Etcd2 {
    /// Checks the options. Connects when first asked for something.
    ///
    /// # Errors
    /// An endpoint that is none, or a certificate that cannot be read.
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

    /// Asks one endpoint. `path` is a key, `query` what follows it, `form` the body of a PUT.
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
        // A slash at the end matters to the patterns of roles.
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
                    "{} is of another etcd cluster ({cluster}) than the one that was listed ({listed}): nothing is \
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
        self.judge(
            &format!("{method} {url}"),
            status,
            json,
            (&index, &location),
            &body,
        )
    }

    /// What an answer means. `request` is for messages.
    fn judge(
        &self,
        request: &str,
        status: u16,
        json: bool,
        (index, location): (&str, &str),
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let said = || {
            let text = String::from_utf8_lossy(body);
            escaped(&shortened(text.trim(), 300)).into_owned()
        };
        match status {
            200 | 201 => match serde_json::from_slice(body) {
                Ok(Whole { node }) => Ok(Answer::Node(node, index.parse().unwrap_or(0))),
                Err(error) => Err(Failure::Lost(format!(
                    "{request} answered {status} with what is no answer of etcd: {error}"
                ))),
            },
            300..400 => Err(Failure::Refused(format!(
                "{request} answered {status}, a redirect to {}: it is not followed",
                escaped(&redacted(location))
            ))),
            401 | 403 => {
                let no = serde_json::from_slice::<No>(body).ok();
                match no {
                    // A directory where a key is wanted, and the like.
                    Some(no) if no.error_code > 0 && no.error_code != UNAUTHORIZED => {
                        return Ok(Answer::No(no));
                    }
                    _ => {}
                }
                let message = no.map_or_else(said, |no| no.message);
                let message = format!("{request} answered {status}: {}", escaped(&message));
                Ok(Answer::No(No {
                    error_code: UNAUTHORIZED,
                    message,
                    cause: String::new(),
                    index: 0,
                }))
            }
            404 if !json && !said().starts_with("404 page not found") => {
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
            400 if said().contains("HTTPS server") => Err(Failure::Refused(format!(
                "{} speaks TLS: use `https://`",
                self.endpoint()
            ))),
            _ => match serde_json::from_slice::<No>(body) {
                // Raft's own troubles: another member may do better, or this one in a moment.
                Ok(no) if json && no.error_code >= 300 => Err(Failure::Leaderless(format!(
                    "{request} answered {status}: {}: {}",
                    escaped(&no.message),
                    escaped(&no.cause)
                ))),
                Ok(no) if json && no.error_code > 0 => Ok(Answer::No(no)),
                _ if status >= 500 => Err(Failure::Lost(format!(
                    "{request} answered {status}: {}",
                    said()
                ))),
                _ => Err(Failure::Refused(format!(
                    "{request} answered {status}: {}",
                    said()
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

    /// Asks one endpoint after the other, until one answers.
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

    /// Whether a key is as expected, by a quorum's word.
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
                Answer::No(No {
                    error_code: NOT_FOUND,
                    ..
                }),
                expect,
            ) => expect == Expect::Absent,
            (Answer::No(no), _) => return Err(self.refused(key, no)),
        })
    }

    /// What a refused change of a key means.
    fn refused(&self, key: &str, no: No) -> ApplyError {
        if no.error_code != NO_DIRECTORY {
            return ApplyError::Refused(self.said(no));
        }
        // It is spelled with a slash, whatever our prefix is.
        let bare = no.cause.trim_start_matches('/');
        let slash = if key.starts_with('/') { "/" } else { "" };
        ApplyError::NotADirectory(format!("{slash}{bare}"))
    }

    fn said(&self, no: No) -> anyhow::Error {
        let No {
            error_code,
            message,
            cause,
            index: _,
        } = no;
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
                // What else there is (compareAndSwap, update, recursive deletes) vulcand never sees.
                Op::Put { key, value } => {
                    let query = if create { "?prevExist=false" } else { "" };
                    let form = format!("value={}", utf8_percent_encode(value, http::COMPONENT));
                    self.ask("PUT", key, query, Some(&form))
                }
                Op::Delete { key } => self.ask("DELETE", key, "", None),
            };
            return match answer {
                Ok(Answer::Node(..)) => Ok(Applied::Whole),
                Ok(Answer::No(No {
                    error_code: NOT_FOUND | EXISTS,
                    ..
                })) => Ok(Applied::Outdated),
                Ok(Answer::No(No {
                    error_code: NOT_A_FILE,
                    ..
                })) => {
                    let (Op::Put { key, .. } | Op::Delete { key }) = op;
                    Err(ApplyError::Directory(key.clone()))
                }
                Ok(Answer::No(no)) => {
                    let (Op::Put { key, .. } | Op::Delete { key }) = op;
                    Err(self.refused(key, no))
                }
                Err(Failure::Refused(why)) => Err(ApplyError::Refused(anyhow!(why))),
                Err(Failure::Lost(why) | Failure::Leaderless(why)) => {
                    self.endpoints.leave();
                    Err(ApplyError::Unknown(anyhow!(why)))
                }
                Err(Failure::Unsent(why)) => {
                    attempts
                        .next(&mut self.endpoints, Some(why))
                        .map_err(ApplyError::Refused)?;
                    // Asked first: it may be of another cluster.
                    let (Op::Put { key, .. } | Op::Delete { key }) = op;
                    self.read(key, "?quorum=true")
                        .map_err(ApplyError::Refused)?;
                    continue;
                }
            };
        }
    }
}

/// Gathers the keys below a node. A directory with nothing in it is a key that ends with a slash.
fn gather(node: Node, spelled: &dyn Fn(&str) -> String, entries: &mut Vec<Entry>) {
    let Node {
        key,
        value,
        dir,
        nodes,
        modified_index: revision,
    } = node;
    if dir && nodes.is_empty() {
        let key = format!("{}/", spelled(&key)).into_bytes();
        entries.push(Entry {
            key,
            value: Vec::new(),
            revision,
        });
    } else if dir {
        for node in nodes {
            gather(node, spelled, entries);
        }
    } else {
        entries.push(Entry {
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
                            gather(node, &spelled, &mut entries);
                        }
                        check_range(prefix, &entries)?;
                        entries.sort_by(|a, b| a.key.cmp(&b.key));
                        Ok(entries)
                    }
                    Answer::No(No {
                        error_code: NOT_FOUND,
                        index,
                        ..
                    }) => {
                        revision.get_or_insert(index);
                        Ok(Vec::new())
                    }
                    Answer::No(no) if no.error_code == UNAUTHORIZED => {
                        Err(Denied(self.said(no).to_string()))
                    }
                    // Of a range that is only looked at for a warning: no reason to stop.
                    Answer::No(no) if no.error_code == NO_DIRECTORY => {
                        Err(Denied(self.refused(prefix, no).to_string()))
                    }
                    Answer::No(no) => return Err(self.said(no)),
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
            // Its own key, the definition, and an entry that a loss rests on.
            guards: 3,
            ranges: false,
            bytes: 1 << 20,
        }
    }

    fn name(&self) -> String {
        self.endpoint().to_string()
    }
}

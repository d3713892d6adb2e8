//! etcd's API version 3, through etcd-rs: one blocking border around its asynchronous client.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use etcd_rs::{
    AuthOp as _, Client, DeleteRequest, Error, KeyRange, KeyValueOp as _, PutRequest, RangeRequest,
    TxnCmp, TxnRequest,
};
use log::debug;
use rustls::ClientConfig;
use tokio::runtime::{Builder, Runtime};
use tonic::Code;
use tonic::transport::{Channel, Endpoint as Origin, Uri};

use super::dial::{Endpoint, Options, User, all_failed, dial, prepare, what_answers};
use super::{Applied, ApplyError, Store};
use crate::deadline::Deadline;
use crate::model::{Denied, Entry, Expect, Limits, Op, Snapshot, Transaction};
use crate::report::escaped;

/// Keys asked for at once, at first: halved when they are too large for one answer.
const PAGE: u64 = 8192;

/// How often a listing starts over because its revision was compacted away meanwhile.
const COMPACTIONS: usize = 3;

/// etcd, over its API version 3.
pub struct Etcd3 {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<ClientConfig>>,
    user: Option<User>,
    token: Option<String>,
    deadline: Deadline,
    /// Taken only by `drop`.
    runtime: Option<Runtime>,
    client: Option<Client>,
    /// The endpoint that is, or will be, spoken to.
    current: usize,
}

/// Why a call failed, and what that means for the next step.
enum Failure {
    /// This endpoint is of no use now; whether a write was done is not known.
    Endpoint(String),
    /// The token is not valid any more; nothing was done.
    Token,
    /// The answer would be too large.
    TooLarge,
    /// The revision that pages are read at is gone.
    Compacted,
    /// No permission.
    Denied(String),
    /// etcd understood, and said no.
    Refused(String),
}

impl Etcd3 {
    /// Checks the options. Connects when first asked for something.
    ///
    /// # Errors
    /// An endpoint that is none, or a certificate that cannot be read.
    pub fn open(options: Options, deadline: Deadline) -> anyhow::Result<Self> {
        let (endpoints, tls) = prepare(&options, &["h2"])?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            endpoints,
            tls,
            user: options.user,
            token: None,
            deadline,
            runtime: Some(runtime),
            client: None,
            current: 0,
        })
    }

    /// Runs one call within one attempt's time.
    fn wait<T>(&self, call: impl Future<Output = T>) -> Result<T, Failure> {
        let time = self
            .deadline
            .attempt()
            .map_err(|up| Failure::Refused(up.to_string()))?;
        let runtime = self
            .runtime
            .as_ref()
            .expect("it is there until the store is dropped");
        runtime
            .block_on(async { tokio::time::timeout(time, call).await })
            .map_err(|_| Failure::Endpoint(format!("no answer within {}", seconds(time))))
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoints[self.current]
    }

    /// Leaves the current endpoint for the next one.
    fn leave(&mut self) {
        self.client = None;
        self.current = (self.current + 1) % self.endpoints.len();
    }

    /// The client of the current endpoint, connected and known to it.
    fn client(&mut self) -> Result<Client, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let endpoint = self.endpoint().clone();
        debug!("connecting to {endpoint}");
        let tls = self.tls.as_ref().filter(|_| endpoint.tls);
        let stream = self.wait(dial(&endpoint, tls))?;
        let stream = stream.map_err(|error| Failure::Endpoint(format!("{error:#}")))?;
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_: Uri| {
            // Once: a lost connection is for us to see, not for the channel to mend.
            let stream = stream
                .take()
                .ok_or_else(|| std::io::Error::other("connection lost"));
            async move { stream }
        });
        // The scheme stays `http` here: what is below is done already.
        let origin = Origin::from_static("http://etcd");
        let channel = self.wait(origin.connect_with_connector(connector))?;
        let channel = channel.map_err(|error| Failure::Endpoint(chain(&error)))?;
        if self.token.is_none()
            && let Some(user) = self.user.clone()
        {
            self.token = Some(self.authenticate(&channel, user)?);
        }
        let client = Client::with_channel(channel, self.token.clone());
        self.client = Some(client.clone());
        Ok(client)
    }

    fn authenticate(&self, channel: &Channel, user: User) -> Result<String, Failure> {
        let User { name, password } = user;
        debug!("authenticating as `{name}`");
        let client = Client::with_channel(channel.clone(), None);
        let answer = self.wait(client.authenticate((name.clone(), password)))?;
        let answer = answer.map_err(|error| match failure(&error, "") {
            Failure::Refused(why) => Failure::Refused(format!("user `{name}`: {why}")),
            other => other,
        })?;
        Ok(answer.token)
    }

    /// Asks with one endpoint after the other, until one answers.
    fn read<T>(
        &mut self,
        mut ask: impl FnMut(&Self, &Client) -> Result<T, Failure>,
    ) -> anyhow::Result<T> {
        let mut failures = Vec::new();
        let mut renewed = false;
        while failures.len() < self.endpoints.len() {
            let answer = match self.client() {
                Ok(client) => ask(self, &client),
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Failure::Token) if !renewed => {
                    renewed = true;
                    self.forget_token();
                }
                Err(Failure::Endpoint(why)) => {
                    let why = self.explained(why);
                    debug!("{}: {why}", self.endpoint());
                    failures.push((self.endpoint().to_string(), why));
                    self.leave();
                    if self.deadline.remaining().is_err() {
                        break;
                    }
                }
                Err(Failure::Refused(why) | Failure::Denied(why)) => {
                    return Err(anyhow!("{}: {}", self.endpoint(), escaped(&why)));
                }
                Err(Failure::Token) => {
                    return Err(anyhow!(
                        "{}: it does not take its own token",
                        self.endpoint()
                    ));
                }
                Err(Failure::TooLarge | Failure::Compacted) => {
                    return Err(anyhow!("{}: answers that cannot be read", self.endpoint()));
                }
            }
        }
        Err(all_failed(&failures))
    }

    fn forget_token(&mut self) {
        debug!("the token is not valid any more");
        self.token = None;
        self.client = None;
    }

    /// Adds to a failed first call what it is that answers.
    fn explained(&self, why: String) -> String {
        let silent = why.starts_with("no answer") || why.starts_with("failed to");
        let Ok(time) = self.deadline.attempt() else {
            return why;
        };
        match what_answers(self.endpoint(), time) {
            Some(what) if !silent => format!("{what} ({why})"),
            _ => why,
        }
    }

    fn ranges(&self, client: &Client, prefixes: &[&str]) -> Result<Snapshot, Failure> {
        let mut compactions = 0;
        'again: loop {
            let mut revision = None;
            let mut ranges = Vec::with_capacity(prefixes.len());
            for prefix in prefixes {
                match self.range(client, prefix, &mut revision) {
                    Ok(entries) => ranges.push(Ok(entries)),
                    Err(Failure::Denied(why)) => ranges.push(Err(Denied(why))),
                    Err(Failure::Compacted) if compactions < COMPACTIONS => {
                        compactions += 1;
                        continue 'again;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            return Ok(Snapshot { revision, ranges });
        }
    }

    /// Reads one range, page by page, all at one revision.
    fn range(
        &self,
        client: &Client,
        prefix: &str,
        revision: &mut Option<u64>,
    ) -> Result<Vec<Entry>, Failure> {
        let KeyRange { mut key, range_end } = KeyRange::prefix(prefix);
        let mut entries = Vec::new();
        let mut limit = PAGE;
        loop {
            let range = KeyRange::range(key.clone(), range_end.clone());
            let at = revision.unwrap_or(0).cast_signed();
            let request = RangeRequest::new(range).limit(limit).revision(at);
            let answer = self.wait(client.get(request))?;
            let page = match answer.map_err(|error| failure(&error, &format!("`{prefix}`"))) {
                Ok(page) => page,
                Err(Failure::TooLarge) if limit > 1 => {
                    limit /= 2;
                    continue;
                }
                Err(Failure::TooLarge) => {
                    return Err(Failure::Refused(format!(
                        "a key in `{prefix}` is too large to read"
                    )));
                }
                Err(failure) => return Err(failure),
            };
            revision.get_or_insert(page.header.revision().cast_unsigned());
            if let Some(last) = page.kvs.last() {
                key.clone_from(&last.key);
                key.push(0);
            }
            let empty = page.kvs.is_empty();
            entries.extend(page.kvs.into_iter().map(|pair| Entry {
                key: pair.key,
                value: pair.value,
                revision: pair.mod_revision.cast_unsigned(),
            }));
            if !page.has_more {
                return Ok(entries);
            }
            if empty {
                return Err(Failure::Refused(format!(
                    "an empty page of `{prefix}` with more to come"
                )));
            }
        }
    }
}

fn request(transaction: &Transaction) -> TxnRequest {
    let mut request = TxnRequest::new();
    for guard in &transaction.guards {
        let key = KeyRange::key(guard.key.as_str());
        request = match guard.expect {
            Expect::Absent => request.when_version(key, TxnCmp::Equal, 0),
            Expect::Present => request.when_version(key, TxnCmp::Greater, 0),
            Expect::Revision(revision) => {
                let revision = usize::try_from(revision).expect("this is a 64-bit program");
                request.when_mod_revision(key, TxnCmp::Equal, revision)
            }
        };
    }
    for op in &transaction.ops {
        request = match op {
            Op::Put { key, value } => {
                request.and_then(PutRequest::new(key.as_str(), value.as_str()))
            }
            Op::Delete { key } => request.and_then(DeleteRequest::new(KeyRange::key(key.as_str()))),
        };
    }
    request
}

impl Store for Etcd3 {
    fn list(&mut self, prefixes: &[&str]) -> anyhow::Result<Snapshot> {
        self.read(|store, client| store.ranges(client, prefixes))
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<Applied, ApplyError> {
        let keys = transaction.ops.first().map_or("", |op| match op {
            Op::Put { key, .. } | Op::Delete { key } => key.as_str(),
        });
        let mut renewed = false;
        loop {
            // Nothing is sent before a connection stands: until then any endpoint will do.
            let client = self
                .read(|_, client| Ok(client.clone()))
                .context("failed to write")
                .map_err(ApplyError::Refused)?;
            let answer = self.wait(client.txn(request(transaction)));
            let answer = answer
                .and_then(|answer| answer.map_err(|error| failure(&error, &format!("`{keys}`"))));
            let said =
                |why: &str| anyhow!("failed to write to {}: {}", self.endpoint(), escaped(why));
            return match answer {
                Ok(answer) if answer.succeeded => Ok(Applied::Whole),
                Ok(_) => Ok(Applied::Outdated),
                Err(Failure::Token) if !renewed => {
                    renewed = true;
                    self.forget_token();
                    continue;
                }
                Err(Failure::Endpoint(why)) => {
                    let error = said(&why);
                    self.leave();
                    Err(ApplyError::Unknown(error))
                }
                Err(Failure::Refused(why) | Failure::Denied(why)) => {
                    Err(ApplyError::Refused(said(&why)))
                }
                Err(Failure::Token | Failure::TooLarge | Failure::Compacted) => {
                    Err(ApplyError::Refused(said("it does not take the request")))
                }
            };
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            operations: 128,
            guards: 128,
            bytes: 1 << 20,
        }
    }

    fn name(&self) -> String {
        self.endpoint().to_string()
    }
}

impl Drop for Etcd3 {
    fn drop(&mut self) {
        // A name that is still being looked up must not hold the end of the run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn seconds(time: std::time::Duration) -> String {
    humantime::format_duration(std::time::Duration::from_millis(
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
    ))
    .to_string()
}

/// What an error of a call on `keys` means. `Display` of etcd-rs says nothing: the status does.
fn failure(error: &Error, keys: &str) -> Failure {
    let Error::Response(status) = error else {
        return Failure::Endpoint(chain(error));
    };
    let message = status
        .message()
        .trim_start_matches("etcdserver: ")
        .to_owned();
    match status.code() {
        Code::Unauthenticated if message.contains("invalid auth token") => Failure::Token,
        Code::OutOfRange if message.contains("message length too large") => Failure::TooLarge,
        Code::OutOfRange if message.contains("compacted") => Failure::Compacted,
        Code::PermissionDenied => Failure::Denied(format!(
            "{message}: the user may not do this on {keys}: grant it a role for that range"
        )),
        Code::InvalidArgument if message.contains("user name is empty") => {
            Failure::Refused(format!("{message}: etcd wants a user: give `--user`"))
        }
        Code::InvalidArgument if message.contains("authentication failed") => {
            Failure::Refused(format!("{message}: wrong name or password"))
        }
        Code::FailedPrecondition if message.contains("not enabled") => {
            Failure::Refused(format!("{message}: leave `--user` out"))
        }
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => {
            let cause = std::error::Error::source(status).map_or(String::new(), chain);
            let detail = if cause.is_empty() {
                message
            } else {
                format!("{message}: {cause}")
            };
            Failure::Endpoint(detail)
        }
        Code::Unimplemented => Failure::Refused(format!("it has no etcd v3 API: {message}")),
        code => Failure::Refused(format!("{message} ({code:?})")),
    }
}

/// An error and its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

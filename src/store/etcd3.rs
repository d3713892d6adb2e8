//! etcd's API version 3: a blocking wrapper around etcd-rs, an asynchronous client.

use std::cell::Cell;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use etcd_rs::{
    AuthOp as _, Client, DeleteRequest, Error, KeyRange, KeyValueOp as _, PutRequest, RangeRequest,
    TxnCmp, TxnRequest,
};
use log::debug;
use tokio::runtime::{Builder, Runtime};
use tonic::Code;
use tonic::transport::{Channel, Endpoint as Origin, Uri};

use super::connection::{Peer, dial};
use super::endpoints::{Attempts, Endpoint, Endpoints, Options, User};
use super::{Applied, ApplyError, Store, check_range};
use crate::model::{Denied, Expect, KeyValue, Limits, Op, Snapshot, Transaction, Unchanged};
use crate::net::deadline::{Deadline, rounded};
use crate::net::tls;
use crate::text::escaped;

/// Keys per page, halved when an answer would be too large. Larger pages cost memory and save hardly any
/// time.
const PAGE: u64 = 2048;

/// The limit of restarts of a listing whose revision was compacted away.
const COMPACTIONS: usize = 3;

/// etcd, over its API version 3.
pub struct Etcd3 {
    endpoints: Endpoints,
    tls: Option<tls::Client>,
    user: Option<User>,
    token: Option<String>,
    deadline: Deadline,
    dial_timeout: Duration,
    /// Taken only by `drop`.
    runtime: Option<Runtime>,
    client: Option<Client>,
    /// The etcd cluster that was listed; answers of another one are refused.
    cluster: Cell<Option<u64>>,
    /// Whether the current connection has been checked to lead to that cluster.
    verified: bool,
    /// The store's revision after the latest applied transaction.
    revision: Option<u64>,
    /// The record of the current connection's peer.
    peer: Arc<Mutex<Peer>>,
}

/// Why a call failed, and what that means for the next step.
enum Failure {
    /// The endpoint failed; a write may have been applied.
    Endpoint(String),
    /// The connection was gone before anything was sent.
    Unsent(String),
    /// The cluster has no leader, or a new one; a write may have been applied.
    Leaderless(String),
    /// The token is no longer valid; nothing was applied.
    Token,
    /// The answer would be too large.
    TooLarge,
    /// The revision of a paged listing was compacted away.
    Compacted,
    /// No permission; nothing was applied.
    Denied(String),
    /// etcd refused the request; nothing was applied.
    Refused(String),
}

/// Returned in place of a second connection: the channel must not reconnect on its own.
#[derive(Debug, thiserror::Error)]
#[error("the connection was lost")]
struct ConnectionLost;

impl Etcd3 {
    /// Checks the options. Connects when first asked for something.
    ///
    /// # Errors
    /// An endpoint that is not valid, or a certificate that cannot be read.
    pub fn open(options: Options, deadline: Deadline) -> anyhow::Result<Self> {
        let (endpoints, tls) = Endpoints::prepare(&options, &["h2"])?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            endpoints,
            tls,
            user: options.user,
            token: None,
            deadline,
            dial_timeout: options.dial_timeout,
            runtime: Some(runtime),
            client: None,
            cluster: Cell::new(None),
            verified: false,
            revision: None,
            peer: Arc::default(),
        })
    }

    /// Runs one call, which gets one attempt's time and must keep to it itself.
    fn run<F: Future>(&self, call: impl FnOnce(Duration) -> F) -> Result<F::Output, Failure> {
        let time = self.deadline.attempt();
        let time = time.map_err(|up| Failure::Refused(up.to_string()))?;
        let runtime = self.runtime.as_ref();
        let runtime = runtime.expect("it is there until the store is dropped");
        Ok(runtime.block_on(async { call(time).await }))
    }

    /// Runs one call within one attempt's time.
    fn wait<T>(&self, call: impl Future<Output = T>) -> Result<T, Failure> {
        let timed = |time| async move {
            let answer = tokio::time::timeout(time, call).await;
            answer.map_err(|_| Failure::Endpoint(format!("no answer within {}", rounded(time))))
        };
        self.run(timed)?
    }

    fn endpoint(&self) -> &Endpoint {
        self.endpoints.current()
    }

    /// Drops the connection and moves on to the next endpoint.
    fn fail_over(&mut self) {
        self.client = None;
        self.endpoints.advance();
    }

    /// The client of the current endpoint, connected and authenticated.
    fn client(&mut self) -> Result<Client, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let endpoint = self.endpoint().clone();
        self.peer = Arc::default();
        debug!("connecting to {endpoint}");
        let tls = self.tls.as_ref().filter(|_| endpoint.tls);
        let connection = self.run(|time| dial(&endpoint, tls, time.min(self.dial_timeout)))?;
        let connection = connection.map_err(|error| Failure::Unsent(format!("{error:#}")))?;
        self.peer = connection.peer();
        let mut connection = Some(connection);
        let connector = tower::service_fn(move |_: Uri| {
            let connection = connection.take().ok_or(ConnectionLost);
            async move { connection }
        });
        // Always `http`: the connector has done TLS already.
        let origin = Origin::from_static("http://etcd");
        let channel = self.wait(origin.connect_with_connector(connector))?;
        let channel = channel.map_err(|error| Failure::Unsent(chain(&error)))?;
        if self.token.is_none()
            && let Some(user) = self.user.clone()
        {
            self.token = self.authenticate(&channel, user)?;
        }
        let client = Client::with_channel(channel, self.token.clone());
        self.client = Some(client.clone());
        self.verified = false;
        Ok(client)
    }

    /// Fetches a token; `None` if authentication is disabled in etcd, which `etcdctl` accepts, too.
    fn authenticate(&self, channel: &Channel, user: User) -> Result<Option<String>, Failure> {
        let User { name, password } = user;
        debug!("authenticating as `{name}`");
        let client = Client::with_channel(channel.clone(), None);
        let answer = self.wait(client.authenticate((name.clone(), password)))?;
        match answer {
            Ok(answer) => Ok(Some(answer.token)),
            Err(Error::Response(status))
                if status.code() == Code::FailedPrecondition
                    && status.message().contains("not enabled") =>
            {
                debug!("authentication is not enabled");
                Ok(None)
            }
            Err(error) => Err(match failure(&error, "") {
                Failure::Refused(why) => Failure::Refused(format!("user `{name}`: {why}")),
                other => other,
            }),
        }
    }

    /// Runs `ask` on one endpoint after the other, until one answers.
    fn read<T>(
        &mut self,
        mut ask: impl FnMut(&Self, &Client) -> Result<T, Failure>,
    ) -> anyhow::Result<T> {
        let mut attempts = Attempts::start(self.deadline)?;
        let mut renewed = false;
        loop {
            // A broken connection of an earlier call does not count against its endpoint.
            let fresh = self.client.is_none();
            let answer = match self.client() {
                Ok(client) => ask(self, &client),
                Err(failure) => Err(failure),
            };
            let why = match answer {
                Ok(answer) => return Ok(answer),
                Err(Failure::Token) if !renewed => {
                    renewed = true;
                    self.forget_token();
                    continue;
                }
                Err(Failure::Token) => {
                    return Err(anyhow!("it rejects the token that it has just issued"));
                }
                Err(Failure::Refused(why) | Failure::Denied(why)) => {
                    return Err(anyhow!("{}", escaped(&why)));
                }
                Err(Failure::TooLarge | Failure::Compacted) => {
                    return Err(anyhow!("its answers cannot be read"));
                }
                Err(Failure::Unsent(_)) if !fresh => {
                    self.client = None;
                    continue;
                }
                Err(Failure::Leaderless(why)) => {
                    attempts.leaderless();
                    Some(why)
                }
                Err(Failure::Endpoint(why) | Failure::Unsent(why)) if fresh => {
                    Some(self.explained(why))
                }
                Err(Failure::Endpoint(why) | Failure::Unsent(why)) => {
                    debug!("the connection to {} broke: {why}", self.endpoint());
                    None
                }
            };
            self.client = None;
            attempts.next(&mut self.endpoints, why)?;
        }
    }

    /// Refuses the answers of an etcd cluster other than the one that was listed.
    fn check_cluster(&self, cluster: u64) -> Result<(), Failure> {
        match self.cluster.get() {
            Some(listed) if listed != cluster => Err(Failure::Refused(format!(
                "it belongs to etcd cluster {cluster:x}, and the listing came from {listed:x}: the \
                 endpoints of `--etcd` must be of one cluster"
            ))),
            _ => {
                self.cluster.set(Some(cluster));
                Ok(())
            }
        }
    }

    /// Checks before the first write on a connection that it leads to the cluster that was listed.
    fn verify(&mut self, client: &Client, transaction: &Transaction) -> Result<(), Failure> {
        if self.verified {
            return Ok(());
        }
        let key = transaction.ops.first().map(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => key.as_str(),
        });
        // Reads a key of the transaction: the run may read the keys that it may write.
        let request = RangeRequest::new(KeyRange::key(key.unwrap_or_default())).limit(1);
        let answer = self.wait(client.get(request))?;
        let answer = answer.map_err(|error| failure(&error, "the keys to write"))?;
        self.check_cluster(answer.header.cluster_id())?;
        self.verified = true;
        Ok(())
    }

    fn forget_token(&mut self) {
        debug!("the token is no longer valid");
        self.token = None;
        self.client = None;
    }

    /// Replaces `why` by what answers at the endpoint, if that is not etcd.
    fn explained(&self, why: String) -> String {
        let peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        peer.explain(self.endpoint()).unwrap_or(why)
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
    ) -> Result<Vec<KeyValue>, Failure> {
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
            self.check_cluster(page.header.cluster_id())?;
            revision.get_or_insert(page.header.revision().cast_unsigned());
            if let Some(last) = page.kvs.last() {
                key.clone_from(&last.key);
                key.push(0);
            }
            let empty = page.kvs.is_empty();
            entries.extend(page.kvs.into_iter().map(|pair| KeyValue {
                key: pair.key,
                value: pair.value,
                revision: pair.mod_revision.cast_unsigned(),
            }));
            if !page.has_more {
                let checked = check_range(prefix, &entries).map(|()| entries);
                return checked.map_err(|why| Failure::Refused(why.to_string()));
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
    for Unchanged { prefix, since } in &transaction.unchanged {
        let range = KeyRange::prefix(prefix.as_str());
        let next = usize::try_from(since.saturating_add(1)).expect("this is a 64-bit program");
        request = request.when_mod_revision(range, TxnCmp::Less, next);
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
        let keys = transaction.ops.iter().map(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => key.as_str(),
        });
        let keys = match (keys.clone().min(), keys.max()) {
            (Some(first), Some(last)) if first != last => format!("`{first}` to `{last}`"),
            (first, _) => format!("`{}`", first.unwrap_or_default()),
        };
        let mut renewed = false;
        let mut unsent = 0;
        loop {
            // Nothing is sent before a connection is up: until then any endpoint will do.
            let client = self.read(|_, client| Ok(client.clone()));
            let client = client
                .with_context(|| format!("failed to write to {}", self.endpoint()))
                .map_err(ApplyError::Refused)?;
            if let Err(failure) = self.verify(&client, transaction) {
                match failure {
                    Failure::Refused(why) | Failure::Denied(why) => {
                        let why = escaped(&why).into_owned();
                        return Err(ApplyError::Refused(anyhow!(
                            "failed to write to {}: {why}",
                            self.endpoint()
                        )));
                    }
                    Failure::Token if !renewed => {
                        renewed = true;
                        self.forget_token();
                    }
                    _ => {
                        unsent += 1;
                        self.fail_over();
                        if unsent > self.endpoints.count() {
                            return Err(ApplyError::Refused(anyhow!(
                                "failed to write: all endpoints stopped answering"
                            )));
                        }
                    }
                }
                continue;
            }
            debug!("writing {} changes, {keys}", transaction.ops.len());
            let answer = self.wait(async {
                // Let the connection's task notice a dead connection before it is used.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                client.txn(request(transaction)).await
            });
            let answer = answer.and_then(|answer| answer.map_err(|error| failure(&error, &keys)));
            let failed =
                |why: &str| anyhow!("failed to write to {}: {}", self.endpoint(), escaped(why));
            return match answer {
                Ok(answer) if answer.succeeded => {
                    self.revision = Some(answer.header.revision().cast_unsigned());
                    Ok(Applied::Whole)
                }
                Ok(_) => Ok(Applied::Outdated),
                Err(Failure::Token) if !renewed => {
                    renewed = true;
                    self.forget_token();
                    continue;
                }
                Err(Failure::Unsent(why)) => {
                    let error = failed(&why);
                    unsent += 1;
                    match unsent {
                        // An idle connection was closed, or the endpoint is down: reconnect to find out.
                        1 => self.client = None,
                        _ => self.fail_over(),
                    }
                    if unsent <= self.endpoints.count() {
                        continue;
                    }
                    Err(ApplyError::Refused(error))
                }
                Err(Failure::Endpoint(why) | Failure::Leaderless(why)) => {
                    let error = failed(&why);
                    self.fail_over();
                    Err(ApplyError::Unknown(error))
                }
                Err(Failure::Refused(why) | Failure::Denied(why)) => {
                    Err(ApplyError::Refused(failed(&why)))
                }
                Err(Failure::Token | Failure::TooLarge | Failure::Compacted) => {
                    Err(ApplyError::Refused(failed("it rejects the request")))
                }
            };
        }
    }

    fn revision(&self) -> Option<u64> {
        self.revision
    }

    fn limits(&self) -> Limits {
        Limits {
            operations: 128,
            guards: 128,
            ranges: true,
            bytes: 1 << 20,
        }
    }

    fn name(&self) -> String {
        self.endpoint().to_string()
    }
}

impl Drop for Etcd3 {
    fn drop(&mut self) {
        // Do not wait for a pending name lookup.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Classifies an error of a call on `keys` by its status: etcd-rs's `Display` has no details.
fn failure(error: &Error, keys: &str) -> Failure {
    let Error::Response(status) = error else {
        return Failure::Endpoint(chain(error));
    };
    let message = status.message();
    let message = message.trim_start_matches("etcdserver: ").to_owned();
    match status.code() {
        Code::Unauthenticated if message.contains("invalid auth token") => Failure::Token,
        // The users have changed since the token was issued.
        Code::InvalidArgument if message.contains("revision of auth store is old") => {
            Failure::Token
        }
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
        Code::Unimplemented => Failure::Refused(format!("it has no etcd v3 API: {message}")),
        // Codes that guarantee that nothing was applied.
        code @ (Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::OutOfRange
        | Code::NotFound
        | Code::Unauthenticated) => Failure::Refused(format!("{message} ({code:?})")),
        Code::Unavailable if message != status.message() => Failure::Leaderless(message),
        // Any other failure may have happened before or after the write was applied.
        _ => {
            let cause = std::error::Error::source(status).map_or(String::new(), chain);
            let detail = match (message.is_empty(), cause.is_empty()) {
                (_, true) => message,
                (true, false) => cause,
                (false, false) => format!("{message}: {cause}"),
            };
            if is_lost(status) {
                Failure::Unsent("it closed the connection".to_owned())
            } else {
                Failure::Endpoint(detail)
            }
        }
    }
}

/// Whether a call failed because its connection had been lost before.
fn is_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(<dyn std::error::Error>::is::<ConnectionLost>)
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

//! A list is complete or an error: against a server that answers each request with the next part of a script.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;

/// What a server does with one request.
enum Answer {
    /// Status, further headers, content type and body.
    Http(u16, &'static str, &'static str, Vec<u8>),
    /// The same as a whole page, of which this many bytes are sent before the connection is closed.
    Cut(&'static str, Vec<u8>, usize),
    /// Closes the connection without an answer.
    Closed,
}

/// Serves a script, one connection for each request, and then refuses.
struct Server {
    port: u16,
    /// The targets of the requests.
    requests: Arc<Mutex<Vec<String>>>,
    /// The values of their header `Authorization`.
    authorizations: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let authorizations = Arc::<Mutex<Vec<String>>>::default();
        let (seen, given) = (Arc::clone(&requests), Arc::clone(&authorizations));
        thread::spawn(move || {
            for answer in script {
                let (mut connection, _) = listener.accept().expect("a connection");
                let (target, authorization) = request(&connection);
                seen.lock().expect("no panic").push(target);
                given.lock().expect("no panic").extend(authorization);
                // A client that has seen enough may be gone.
                let _ = connection.write_all(&answer.bytes());
            }
        });
        Self {
            port,
            requests,
            authorizations,
        }
    }

    fn api(&self, path: &str) -> Api {
        api(&format!("http://127.0.0.1:{}{path}", self.port))
    }

    /// The names of the pods of one namespace, or why there is no list.
    fn list(&self) -> Result<Vec<String>, Error> {
        let selection = Selection {
            namespace: Some("shop"),
            labels: None,
            fields: None,
        };
        let mut api = self.api("");
        api.list(&selection, &mut |pod| pod.name.into_owned())
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

impl Answer {
    fn bytes(self) -> Vec<u8> {
        let head = |status: u16, headers: &str, kind: &str, length: usize| {
            format!(
                "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{headers}\
                 connection: close\r\n\r\n"
            )
        };
        match self {
            Self::Http(status, headers, kind, body) => {
                let head = head(status, headers, kind, body.len());
                [head.into_bytes(), body].concat()
            }
            Self::Cut(kind, body, sent) => {
                let head = head(200, "", kind, body.len());
                [head.as_bytes(), &body[..sent]].concat()
            }
            Self::Closed => Vec::new(),
        }
    }
}

/// Reads a request: its target, and the value of its header `Authorization`.
fn request(connection: &TcpStream) -> (String, Option<String>) {
    let mut lines = BufReader::new(connection).lines();
    let line = lines.next().expect("a request").expect("a line");
    let rest = lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    let headers = rest.map(|line| line.expect("a header"));
    let headers = headers.collect::<Vec<_>>();
    assert!(!headers.is_empty(), "headers");
    let authorization = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization")
            .then(|| value.to_owned())
    });
    let target = line.split(' ').nth(1);
    (target.expect("a target").to_owned(), authorization)
}

/// A client of a server that needs no credentials.
fn open(server: &str) -> anyhow::Result<Api> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config");
    let cluster = format!("{{\"name\":\"c\",\"cluster\":{{\"server\":\"{server}\"}}}}");
    let context = r#"{"name":"x","context":{"cluster":"c","user":"","namespace":"shop"}}"#;
    let text =
        format!(r#"{{"clusters":[{cluster}],"contexts":[{context}],"current-context":"x"}}"#);
    std::fs::write(&path, text).expect("it is written");
    let options = Options {
        kubeconfig: vec![path],
        explicit: true,
        ..Options::default()
    };
    Api::open(&options, Reads::default(), Deadline::start(LONG, LONG))
}

fn api(server: &str) -> Api {
    open(server).expect("a valid kubeconfig")
}

/// Longer than any of these tests takes, on a busy machine too.
const LONG: Duration = Duration::from_mins(1);
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// A page of these pods of namespace `shop`.
fn page(version: &str, next: &str, pods: &[&str]) -> Answer {
    let pods = pods.iter().map(|name| {
        format!(
            r#"{{"metadata":{{"namespace":"shop","name":"{name}"}},"spec":{{}},"status":{{}}}}"#
        )
    });
    let pods = pods.collect::<Vec<_>>().join(",");
    let meta = format!(r#"{{"resourceVersion":"{version}","continue":"{next}"}}"#);
    let text =
        format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{meta},"items":[{pods}]}}"#);
    Answer::Http(200, "", JSON, text.into_bytes())
}

fn status(code: u16) -> Answer {
    let body = br#"{"kind":"Status","message":"no"}"#;
    Answer::Http(code, "", JSON, body.to_vec())
}

/// A protobuf field of bytes, shorter than 128.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("short");
    [&[tag << 3 | 2, length], bytes].concat()
}

/// A page of two pods in protobuf.
fn protobuf() -> Vec<u8> {
    let pod = |name: &str| {
        let meta = [field(1, name.as_bytes()), field(3, b"shop")].concat();
        field(2, &field(1, &meta))
    };
    let list = [field(1, &field(2, b"7")), pod("a"), pod("b")].concat();
    let kind = field(1, &field(2, b"PodList"));
    [&b"k8s\0"[..], &kind, &field(2, &list)].concat()
}

#[test]
fn pages_are_joined() {
    let server = Server::start(vec![page("7", "a b&", &["a", "b"]), page("7", "", &["c"])]);
    assert_eq!(server.list().expect("a list"), ["a", "b", "c"]);
    let first = "/api/v1/namespaces/shop/pods?limit=500&fieldSelector=status.phase%21%3DFailed%2C\
                 status.phase%21%3DSucceeded";
    let second = format!("{first}&continue=a%20b%26");
    assert_eq!(server.requests(), [first, &second]);
}

#[test]
fn selectors_are_sent_and_all_namespaces_have_a_path_of_their_own() {
    let server = Server::start(vec![page("7", "", &["a"])]);
    let selection = Selection {
        namespace: None,
        labels: Some("app=web"),
        fields: Some("spec.nodeName=n1"),
    };
    let mut api = server.api("/clusters/1");
    assert_eq!(api.namespace(), "shop");
    assert_eq!(
        api.server(),
        format!("http://127.0.0.1:{}/clusters/1", server.port)
    );
    let count = api.list(&selection, &mut |_| ()).expect("a list").len();
    assert_eq!(count, 1);
    let [target] = server.requests().try_into().expect("one");
    let wanted = "/clusters/1/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Dn1%2Cstatus";
    assert!(target.starts_with(wanted), "{target}");
    assert!(target.ends_with("&labelSelector=app%3Dweb"), "{target}");
}

#[test]
fn pages_of_different_versions_and_pods_of_other_namespaces_are_errors() {
    let failed = |script: Vec<Answer>| {
        let error = Server::start(script).list().expect_err("an error");
        format!("{error:#}")
    };
    let mixed = failed(vec![page("7", "x", &["a"]), page("8", "", &["b"])]);
    assert!(mixed.contains("resourceVersion 7 and 8"), "{mixed}");
    let Answer::Http(_, _, _, body) = page("7", "", &["a"]) else {
        panic!("a page")
    };
    let body = String::from_utf8(body)
        .expect("UTF-8")
        .replace("shop", "blog");
    let other = failed(vec![Answer::Http(200, "", JSON, body.into_bytes())]);
    assert!(other.contains("of another namespace"), "{other}");
    let html = failed(vec![Answer::Http(200, "", "text/html", b"<html>".to_vec())]);
    assert!(html.contains("is this the API server?"), "{html}");
}

#[test]
fn an_expired_list_starts_over_three_times() {
    let expired = |times: usize| {
        let mut script = Vec::new();
        for _ in 0..times {
            script.push(page("7", "x", &["old"]));
            script.push(status(410));
        }
        script.push(page("8", "x", &["a"]));
        script.push(page("8", "", &["b"]));
        let server = Server::start(script);
        (server.list(), server.requests().len())
    };
    for times in 0..=3 {
        let (list, requests) = expired(times);
        assert_eq!(list.expect("a list"), ["a", "b"], "{times}");
        assert_eq!(requests, 2 * times + 2);
    }
    let (list, requests) = expired(4);
    let error = list.expect_err("four times").to_string();
    assert!(error.contains("410: no: and so 3 times before"), "{error}");
    assert_eq!(requests, 8);
}

#[test]
fn statuses_that_may_pass_are_tried_again() {
    for code in [429, 500, 502, 503, 504, 403] {
        let server = Server::start(vec![status(code), page("7", "", &["a"])]);
        assert_eq!(server.list().expect("a list"), ["a"], "{code}");
        assert_eq!(server.requests().len(), 2, "{code}");
    }
    let later = Answer::Http(503, "retry-after: 0\r\n", JSON, Vec::new());
    let server = Server::start(vec![later, page("7", "", &["a"])]);
    assert_eq!(server.list().expect("a list"), ["a"]);
}

#[test]
fn statuses_that_stay_are_errors_at_once() {
    let failed = |answer: Answer| {
        let server = Server::start(vec![answer]);
        let error = server.list().expect_err("an error");
        assert_eq!(server.requests().len(), 1);
        assert!(matches!(error, Error::Failed(_)), "{error}");
        error.to_string()
    };
    assert!(failed(status(404)).ends_with("answered 404: no"));
    let unauthorized = failed(status(401));
    let wanted = "401: no: is the token or certificate still valid?";
    assert!(unauthorized.contains(wanted), "{unauthorized}");
    let to = "location: http://u:secret@elsewhere/\r\n";
    let redirect = failed(Answer::Http(302, to, JSON, Vec::new()));
    assert!(redirect.contains("a redirect to http://"), "{redirect}");
    assert!(!redirect.contains("secret"), "{redirect}");
    let tls = b"Client sent an HTTP request to an HTTPS server.".to_vec();
    let plain = failed(Answer::Http(400, "", "text/plain", tls));
    assert!(plain.contains("use `https://`"), "{plain}");
    assert!(failed(status(400)).ends_with("answered 400: no"));
}

#[test]
fn a_refusal_is_told_from_a_failure() {
    let twice = Server::start(vec![status(403), status(403)]);
    let error = twice.list().expect_err("refused");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(twice.requests().len(), 2);
    // Another trouble after a refusal is a failure.
    let body = br#"{"kind":"Status","message":"no"}"#.to_vec();
    let much_later = Answer::Http(503, "retry-after: 3600\r\n", JSON, body);
    let mixed = Server::start(vec![status(403), much_later]);
    let error = mixed.list().expect_err("an error");
    assert!(matches!(error, Error::Failed(_)), "{error}");
    let error = error.to_string();
    assert!(error.contains("503: no; "), "{error}");
}

#[test]
fn a_closed_connection_is_tried_again_until_pods_were_read() {
    let server = Server::start(vec![Answer::Closed, page("7", "", &["a"])]);
    assert_eq!(server.list().expect("a list"), ["a"]);
    let body = protobuf();
    let whole = || Answer::Http(200, "", PROTOBUF, protobuf());
    assert_eq!(
        Server::start(vec![whole()]).list().expect("a list"),
        ["a", "b"]
    );
    // Before the first pod.
    let server = Server::start(vec![Answer::Cut(PROTOBUF, body.clone(), 20), whole()]);
    assert_eq!(server.list().expect("a list"), ["a", "b"]);
    // Within the second one.
    let cut = Answer::Cut(PROTOBUF, body.clone(), body.len() - 3);
    let server = Server::start(vec![cut, whole()]);
    let error = server.list().expect_err("pods cannot be taken back");
    assert!(matches!(error, Error::Failed(_)), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn clusters_without_a_ca_are_told_apart_by_host_port_and_path() {
    let cluster = |server: &str| api(server).cluster();
    let plain = cluster("http://127.0.0.1:8001");
    assert_eq!(plain.len(), 8);
    let others = [
        "http://127.0.0.1:8002",
        "http://127.0.0.2:8001",
        "http://127.0.0.1:8001/clusters/1",
        "http://127.0.0.1:8001/clusters/2",
    ];
    let mut seen = others.map(cluster).to_vec();
    assert_eq!(cluster("http://127.0.0.1:8001/clusters/1/"), seen[2]);
    seen.push(plain);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5);
    for (server, place) in [
        ("https://api.example.com", "api.example.com:443"),
        ("http://[::1]/x", "[::1]:80"),
        ("https://10.0.0.1:6443", "10.0.0.1:6443"),
    ] {
        assert_eq!(host_and_port(server), place);
    }
}

#[test]
fn a_server_is_http_or_https() {
    for server in ["http://127.0.0.1:1", "https://127.0.0.1:1"] {
        assert!(open(server).is_ok(), "{server}");
    }
    let error = open("ftp://127.0.0.1:1").err().expect("an error");
    assert!(
        error
            .to_string()
            .contains("is not the URL of an API server"),
        "{error}"
    );
}

#[test]
fn a_refused_token_is_read_again_once() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "new").expect("it is written");
    let list = |auth: Auth, script: Vec<Answer>| {
        let server = Server::start(script);
        let mut api = server.api("");
        api.access.auth = auth;
        api.authorization = Some("Bearer old".to_owned());
        let selection = Selection {
            namespace: Some("shop"),
            labels: None,
            fields: None,
        };
        let list = api.list(&selection, &mut |pod| pod.name.into_owned());
        let tokens = server.authorizations.lock().expect("no panic").clone();
        (list.map_err(|error| error.to_string()), tokens)
    };
    let of_file = || Auth::TokenFile {
        path: file.path().to_owned(),
        fallback: None,
    };
    let (found, tokens) = list(of_file(), vec![status(401), page("7", "", &["a"])]);
    assert_eq!(found, Ok(vec!["a".to_owned()]));
    assert_eq!(tokens, ["Bearer old", "Bearer new"]);
    let (found, tokens) = list(of_file(), vec![status(401), status(401)]);
    let error = found.expect_err("twice");
    assert!(
        error.contains("is the token or certificate still valid?"),
        "{error}"
    );
    assert_eq!(tokens.len(), 2);
    // A token of the kubeconfig stays what it is.
    let (found, tokens) = list(Auth::Token("old".to_owned()), vec![status(401)]);
    assert_eq!((found.is_err(), tokens.len()), (true, 1));
}

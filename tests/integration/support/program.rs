//! Runs the program under test without the environment of this machine.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::api;
use super::etcd::test_tools;

/// One call of the program: its arguments, environment and input.
pub struct Program {
    command: Command,
    input: Vec<u8>,
}

/// What one call of the program answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
}

/// The folder of this repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program's file.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vulcanized"))
}

/// The program with these arguments, separated by white space.
pub fn vulcanized(arguments: &str) -> Program {
    let mut command = Command::new(program());
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        // The defaults are not enough for the largest inputs on a busy machine.
        .env("VULCANIZED_TIMEOUT", "5m")
        .env("VULCANIZED_REQUEST_TIMEOUT", "1m")
        .args(arguments.split_whitespace());
    Program {
        command,
        input: Vec::new(),
    }
}

impl Program {
    /// Adds one argument, unchanged.
    pub fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Gives it this kubeconfig.
    pub fn kubeconfig(self, file: &tempfile::NamedTempFile) -> Self {
        self.arg("--kubeconfig").arg(file.path())
    }

    /// Sets one environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its stdin.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Starts it without waiting.
    pub fn start(mut self) -> Child {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A program that ends before it reads its input closes the pipe, which is fine.
        let _ = stdin.write_all(&self.input);
        child
    }

    /// Runs it to its end.
    pub fn run(self) -> Answer {
        ended(self.start())
    }

    /// Runs it and checks the exit code; the panic shows all its output.
    #[track_caller]
    pub fn exits(self, code: i32) -> Answer {
        let answer = self.run();
        assert!(
            answer.code == code,
            "wanted exit code {code}, got:\n{answer}"
        );
        answer
    }
}

/// Waits until a program ends. One that hangs is killed: its exit code is -1.
pub fn ended(child: Child) -> Answer {
    /// Longer than any `--timeout` of a test, even on a busy machine.
    const HANGS: Duration = Duration::from_mins(10);
    let id = child.id();
    let (done, is_done) = mpsc::channel::<()>();
    thread::spawn(move || {
        if is_done.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            let id = id.to_string();
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
    });
    let output = child.wait_with_output().expect("the program ends");
    drop(done);
    output.into()
}

/// A `--pods` file.
pub struct PodsFile(tempfile::NamedTempFile);

impl PodsFile {
    /// A file with these pods.
    pub fn new(pods: impl IntoIterator<Item = Value>) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), api::kubectl(pods)).expect("it is written");
        Self(file)
    }

    /// The program with these pods on the etcd at this URL.
    pub fn on(&self, url: &str, more: &str) -> Program {
        vulcanized(&format!("--owner prod --etcd {url} {more}"))
            .arg("--pods")
            .arg(self.0.path())
    }
}

impl Answer {
    /// The hash in a dry run's last line.
    #[track_caller]
    pub fn plan(&self) -> &str {
        let last = self.out.lines().last();
        let hash = last.and_then(|line| line.strip_prefix("plan "));
        hash.unwrap_or_else(|| panic!("no hash: {self}"))
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            err: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        writeln!(text, "exit code {}", self.code)?;
        writeln!(text, "--- stdout\n{}--- stderr\n{}---", self.out, self.err)?;
        f.write_str(&text)
    }
}

/// kubectl with this kubeconfig and a minimal environment, listing the same pods as the program. It has no cache.
pub fn kubectl(kubeconfig: &Path) -> Command {
    let program = test_tools().join("bin/kubectl");
    assert!(program.exists(), "no kubectl: run `tests/setup`");
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("PATH", "/bin:/usr/bin")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["get", "--raw", "/api/v1/namespaces/default/pods"])
        .arg("--request-timeout=20s");
    command
}

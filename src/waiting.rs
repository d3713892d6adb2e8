//! Waiting: with a timeout for calls that have none, and with a notice at a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long a wait goes without a notice.
const QUIET: Duration = Duration::from_secs(2);

/// Runs `wait`. If it takes longer than [`QUIET`] and stderr is a terminal, prints there what it waits for.
pub(crate) fn waiting<T>(for_what: &dyn Display, wait: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return wait();
    }
    let (done, ended) = mpsc::channel::<()>();
    let text = format!("waiting for {for_what}");
    thread::spawn(move || {
        if ended.recv_timeout(QUIET) == Err(RecvTimeoutError::Timeout) {
            // Nobody reads a stderr that cannot be written.
            let _ = writeln!(io::stderr(), "{text}");
        }
    });
    let result = wait();
    drop(done);
    result
}

/// Runs a blocking call on a thread of its own. The receiver gets its result, and can time out.
pub(crate) fn in_background<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // The receiver is gone once it has timed out.
        let _ = sender.send(call());
    });
    receiver
}

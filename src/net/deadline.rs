//! Deadlines: one for the whole run, and a time limit for each attempt at a request.

use std::time::{Duration, Instant};

/// The deadline of a run, and the time limit of one attempt at a request.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Instant,
    run: Duration,
    request: Duration,
}

/// The run's time is up. Prints as `the run's time is up (--timeout 45s)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run's time is up (--timeout {0:?})")]
pub struct TimeUp(Duration);

impl Deadline {
    /// A run that starts now and may take `run`, each attempt at a request `request`.
    #[must_use]
    pub fn start(run: Duration, request: Duration) -> Self {
        /// A year stands for no limit: `Instant` overflows somewhere beyond it.
        const LONGEST: Duration = Duration::from_hours(365 * 24);
        Self {
            end: Instant::now() + run.min(LONGEST),
            run,
            request,
        }
    }

    /// The time limit of the next attempt at a request: never zero.
    ///
    /// # Errors
    /// [`TimeUp`] when the run has no time left.
    pub fn attempt(&self) -> Result<Duration, TimeUp> {
        Ok(self.remaining()?.min(self.request))
    }

    /// The time that is left of the run: never zero.
    ///
    /// # Errors
    /// [`TimeUp`] when none is left.
    pub fn remaining(&self) -> Result<Duration, TimeUp> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(TimeUp(self.run))
        } else {
            Ok(left)
        }
    }

    /// The error for a wait that lasted until the deadline.
    #[must_use]
    pub fn time_up(&self) -> TimeUp {
        TimeUp(self.run)
    }

    /// Sleeps for `pause` if the run has more time than that, else not at all: for pauses that a server asked
    /// for (`Retry-After`).
    ///
    /// # Errors
    /// [`TimeUp`] when less than `pause` is left of the run.
    pub fn pause(&self, pause: Duration) -> Result<(), TimeUp> {
        if self.remaining()? <= pause {
            return Err(TimeUp(self.run));
        }
        std::thread::sleep(pause);
        Ok(())
    }

    /// Sleeps for `pause`, or until the deadline if that is sooner.
    ///
    /// # Errors
    /// [`TimeUp`] when the deadline has passed then.
    pub fn back_off(&self, pause: Duration) -> Result<(), TimeUp> {
        std::thread::sleep(pause.min(self.remaining()?));
        self.remaining().map(drop)
    }
}

/// Displays a duration in whole milliseconds: `1s 500ms`.
pub(crate) fn rounded(time: Duration) -> humantime::FormattedDuration {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis))
}

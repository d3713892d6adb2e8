//! Every wait of a run has an end: each attempt's, and the whole run's.

use std::time::{Duration, Instant};

/// The end of a run, and how long one attempt at a request may take before it.
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
        /// More than this is for ever. The clock's own range ends somewhere beyond it.
        const LONGEST: Duration = Duration::from_hours(365 * 24);
        Self {
            end: Instant::now() + run.min(LONGEST),
            run,
            request,
        }
    }

    /// How long the next attempt at a request may take: never zero.
    ///
    /// # Errors
    /// [`TimeUp`] when the run has no time left.
    pub fn attempt(&self) -> Result<Duration, TimeUp> {
        Ok(self.remaining()?.min(self.request))
    }

    /// What is left of the run: never zero.
    ///
    /// # Errors
    /// [`TimeUp`] when nothing is.
    pub fn remaining(&self) -> Result<Duration, TimeUp> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(TimeUp(self.run))
        } else {
            Ok(left)
        }
    }

    /// The error for a wait that lasted until the run's end.
    #[must_use]
    pub fn over(&self) -> TimeUp {
        TimeUp(self.run)
    }

    /// Sleeps for `pause`, or not at all when the run would be over before its end: for a pause that
    /// another one asked for.
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

    /// Sleeps for `pause`, or for what is left of the run.
    ///
    /// # Errors
    /// [`TimeUp`] when the run is over then.
    pub fn back_off(&self, pause: Duration) -> Result<(), TimeUp> {
        std::thread::sleep(pause.min(self.remaining()?));
        self.remaining().map(drop)
    }
}

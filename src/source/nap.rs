//! When the reader sleeps before it reads again, and how long. No clock and no I/O.
//!
//! A longer nap wakes both sides less often. But a socket holds only so many of the walsender's messages (on a
//! Unix-domain socket, and on TCP until the kernel has widened its window, about 200, however short they are) and then
//! stops it: there a nap of a millisecond halves the rate. So the length is tried out while the stream runs.

use std::time::{Duration, Instant};

/// The judge of one stream.
#[derive(Debug)]
pub(super) struct Nap {
    longest: Duration,
    window: Instant,
    messages: usize,
    bytes: usize,
    busy: bool,
    length: Length,
}

impl Nap {
    /// Over so long the stream is judged to be busy.
    const WINDOW: Duration = Duration::from_millis(1);
    /// Over so long it is judged to be calm again: a walsender that shares its processor pauses for milliseconds.
    const CALM_WINDOW: Duration = Duration::from_millis(10);
    /// Messages in a millisecond from which the stream is busy, and down to which it stays so. An application that
    /// commits 4000 times a second makes 12, and there the nap would only cost latency.
    const BUSY: f64 = 30.0;
    const CALM: f64 = 15.0;
    /// The same in bytes, for large rows.
    const BUSY_BYTES: f64 = 65_536.0;
    const CALM_BYTES: f64 = 32_768.0;

    /// `longest`: the most that it sleeps; zero for never.
    pub(super) fn new(longest: Duration, now: Instant) -> Self {
        Nap { longest, window: now, messages: 0, bytes: 0, busy: false, length: Length::new(now) }
    }

    /// Counts one read, which ended at `now`.
    pub(super) fn count(&mut self, now: Instant, messages: usize, bytes: usize) {
        self.messages += messages;
        self.bytes += bytes;
        if self.busy {
            self.length.count(now, bytes);
        }
        let elapsed = now.saturating_duration_since(self.window);
        if elapsed < if self.busy { Self::CALM_WINDOW } else { Self::WINDOW } {
            return;
        }
        let per_ms = |count: usize| count as f64 / (elapsed.as_secs_f64() * 1000.0);
        let (messages, bytes) = if self.busy { (Self::CALM, Self::CALM_BYTES) } else { (Self::BUSY, Self::BUSY_BYTES) };
        let busy = per_ms(self.messages) >= messages || per_ms(self.bytes) >= bytes;
        if busy != self.busy {
            self.busy = busy;
            self.length.begin(now);
        }
        (self.window, self.messages, self.bytes) = (now, 0, 0);
    }

    /// How long to sleep now: nothing where the last read ended long enough ago, as when its chunk had to wait.
    pub(super) fn rest(&self, now: Instant, last_read: Instant) -> Duration {
        if !self.busy {
            return Duration::ZERO;
        }
        (self.longest / self.length.divisor()).saturating_sub(now.saturating_duration_since(last_read))
    }
}

/// Tries a shorter and a longer nap in turn, and keeps what moves more bytes; of two that move the same, the longer.
#[derive(Debug)]
struct Length {
    /// The nap is halved so many times.
    halved: u32,
    trial: Option<u32>,
    /// Bytes in a second without a trial.
    rate: f64,
    /// Periods since the last trial.
    periods: u32,
    shorter_next: bool,
    since: Instant,
    reads: u32,
    bytes: usize,
}

impl Length {
    const MOST_HALVED: u32 = 2;
    /// Reads in a period.
    const PERIOD: u32 = 64;
    /// Periods between two trials.
    const BETWEEN: u32 = 4;
    /// What a shorter nap must gain, and a longer one may lose.
    const GAIN: f64 = 1.15;
    const LOSS: f64 = 0.97;

    fn new(now: Instant) -> Self {
        Length { halved: 0, trial: None, rate: 0.0, periods: 0, shorter_next: true, since: now, reads: 0, bytes: 0 }
    }

    fn divisor(&self) -> u32 {
        1 << self.trial.unwrap_or(self.halved)
    }

    /// A period begins: what was counted before does not compare.
    fn begin(&mut self, now: Instant) {
        (self.since, self.reads, self.bytes, self.periods, self.trial) = (now, 0, 0, 0, None);
    }

    fn count(&mut self, now: Instant, bytes: usize) {
        self.reads += 1;
        self.bytes += bytes;
        if self.reads < Self::PERIOD {
            return;
        }
        let rate = self.bytes as f64 / now.saturating_duration_since(self.since).as_secs_f64().max(1e-6);
        (self.since, self.reads, self.bytes) = (now, 0, 0);
        match self.trial.take() {
            Some(trial) => {
                let least = if trial > self.halved { Self::GAIN } else { Self::LOSS };
                if rate >= self.rate * least {
                    self.halved = trial;
                }
                self.periods = 0;
            }
            None => {
                self.rate = if self.periods == 0 { rate } else { (self.rate + rate) / 2.0 };
                self.periods += 1;
                if self.periods >= Self::BETWEEN {
                    self.trial = self.next_trial();
                }
            }
        }
    }

    fn next_trial(&mut self) -> Option<u32> {
        let shorter = self.halved == 0 || (self.shorter_next && self.halved < Self::MOST_HALVED);
        self.shorter_next = !shorter;
        if shorter { Some(self.halved + 1) } else { self.halved.checked_sub(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_reader_naps_only_while_the_stream_is_busy() {
        let start = Instant::now();
        let mut nap = Nap::new(MS, start);
        nap.count(start + 2 * MS, 24, 9000);
        assert_eq!(nap.rest(start + 2 * MS, start + 2 * MS), Duration::ZERO, "4000 commits a second");
        nap.count(start + 3 * MS, 50, 9000);
        assert_eq!(nap.rest(start + 3 * MS, start + 3 * MS), MS);
        assert_eq!(nap.rest(start + 3 * MS + MS / 4, start + 3 * MS), MS * 3 / 4, "since the last read");
        assert_eq!(nap.rest(start + 9 * MS, start + 3 * MS), Duration::ZERO, "the chunk had to wait");
        nap.count(start + 9 * MS, 1, 300);
        assert_eq!(nap.rest(start + 9 * MS, start + 9 * MS), MS, "a pause of milliseconds");
        nap.count(start + 13 * MS, 160, 48_000);
        assert_eq!(nap.rest(start + 13 * MS, start + 13 * MS), MS, "still busy");
        nap.count(start + 23 * MS, 140, 42_000);
        assert_eq!(nap.rest(start + 23 * MS, start + 23 * MS), Duration::ZERO);
        nap.count(start + 24 * MS, 8, 80_000);
        assert_eq!(nap.rest(start + 24 * MS, start + 24 * MS), MS, "large rows");
        nap.count(start + 1000 * MS, 200, 80_000);
        assert_eq!(nap.rest(start + 1000 * MS, start + 1000 * MS), Duration::ZERO, "a burst after a pause");
    }

    /// Naps that the judge asks for on a socket which holds `capacity` bytes and is filled with `per_ms` bytes.
    fn run(capacity: usize, per_ms: usize) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut nap = Nap::new(MS, now);
        let mut naps = Vec::new();
        for _ in 0..4000 {
            let slept = nap.rest(now, now);
            now += slept + MS / 20;
            let elapsed = (slept + MS / 20).as_secs_f64() * 1000.0;
            let bytes = ((per_ms as f64 * elapsed) as usize).min(capacity);
            nap.count(now, bytes / 300, bytes);
            naps.push(slept);
        }
        naps
    }

    #[test]
    fn a_full_socket_shortens_the_nap_and_a_roomy_one_keeps_it() {
        let share = |naps: &[Duration], length: Duration| {
            naps[2000..].iter().filter(|nap| **nap == length).count() as f64 / 2000.0
        };
        assert!(share(&run(1 << 20, 100_000), MS) > 0.7, "room for every nap");
        assert!(share(&run(50_000, 200_000), MS / 4) > 0.7, "full within a quarter of a millisecond");
        assert!(share(&run(60_000, 100_000), MS / 2) > 0.6, "full within 0.6 ms");
    }

    #[test]
    fn no_nap_is_no_nap() {
        let start = Instant::now();
        let mut nap = Nap::new(Duration::ZERO, start);
        nap.count(start + MS, 1000, 1 << 20);
        assert_eq!(nap.rest(start + MS, start + MS), Duration::ZERO);
    }
}
